//! What goes out to a client of a service that this process hosts: Tor's windows let it go no faster than the client takes it.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    net::unix::OwnedReadHalf,
    time::timeout,
};

/// Bytes that are read at once.
const PIECE: usize = 8 * 1024;

/// Sends on what comes from a worker, and then the end. Each step may take `patience`: a client that takes nothing for so long
/// (Tor: sends no SENDME, tor-spec, "Flow control") must not hold what waits for it.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] if the client takes nothing; else what either end says.
pub async fn send_on(
    from: &OwnedReadHalf,
    to: &mut (impl AsyncWrite + Unpin),
    patience: Duration,
) -> io::Result<()> {
    let mut bytes = vec![0; PIECE];
    loop {
        match from.try_read(&mut bytes) {
            Ok(0) => return within(patience, to.shutdown()).await,
            Ok(read) => {
                let mut left = bytes.get(..read).unwrap_or_default();
                while !left.is_empty() {
                    let sent = within(patience, to.write(left)).await?;
                    if sent == 0 {
                        return Err(io::ErrorKind::WriteZero.into());
                    }
                    left = left.get(sent..).unwrap_or_default();
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // Arti fills cells: what is less than one waits for this.
                within(patience, to.flush()).await?;
                from.readable().await?;
            }
            Err(error) => return Err(error),
        }
    }
}

async fn within<T>(patience: Duration, step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(patience, step).await.map_err(|_| io::ErrorKind::TimedOut)?
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, duplex},
        net::UnixStream,
    };

    use super::*;

    #[tokio::test]
    async fn all_goes_out_to_a_client_that_reads_and_then_the_end() {
        let (worker, near) = UnixStream::pair().unwrap();
        let (from, _near) = near.into_split();
        let (mut to, mut client) = duplex(7);
        let sends = tokio::spawn(async move { send_on(&from, &mut to, Duration::from_secs(60)).await });
        let sent: Vec<u8> = (0..40_000_u32).flat_map(u32::to_le_bytes).collect();
        let said = sent.clone();
        let says = tokio::spawn(async move {
            let mut worker = worker;
            worker.write_all(&said).await.unwrap();
        });
        let mut read = Vec::new();
        client.read_to_end(&mut read).await.unwrap();
        assert!(read == sent, "{} of {} bytes", read.len(), sent.len());
        says.await.unwrap();
        sends.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn what_a_client_does_not_take_is_given_up_though_the_worker_has_gone() {
        let (mut worker, near) = UnixStream::pair().unwrap();
        let (from, _near) = near.into_split();
        let (mut to, mut client) = duplex(7);
        worker.write_all(&[1; 100]).await.unwrap();
        drop(worker);
        let ended = send_on(&from, &mut to, Duration::from_millis(20)).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(to);
        let mut read = Vec::new();
        client.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, [1; 7]);
    }
}
