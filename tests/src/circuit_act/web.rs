//! What a browser and an attacker do alike: a stream through tor's SOCKS port, and requests over it.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

/// The virtual port of the services.
pub(super) const PORT: u16 = 80;

/// Longest body that is read, bytes.
const MOST_BODY: u64 = 65_536;

/// A service, and tor's door to it.
#[derive(Clone, Debug)]
pub(super) struct Door {
    /// The SOCKS port.
    pub(super) socks: SocketAddr,
    /// The service's address with `.onion`.
    pub(super) onion: String,
}

/// Why something did not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Miss {
    /// tor opened no stream.
    Unreached,
    /// An answer with another status than 200.
    Refused,
    /// The stream ended, or was reset, before the answer was there.
    Broken,
}

/// A stream to the service.
pub(super) type Stream = BufReader<TcpStream>;

/// Opens a stream. Those of one `user` share a circuit as long as that lives; those of another user never do (tor's default
/// `IsolateSOCKSAuth`; RFC 1928, RFC 1929).
pub(super) async fn open(door: &Door, user: &str) -> Result<Stream, Miss> {
    greet(door, user).await.ok().flatten().ok_or(Miss::Unreached)
}

async fn greet(door: &Door, user: &str) -> io::Result<Option<Stream>> {
    let mut stream = TcpStream::connect(door.socks).await?;
    stream.write_all(&[5, 1, 2]).await?;
    if read(&mut stream).await? != [5, 2] {
        return Ok(None);
    }
    let mut login = vec![1];
    for text in [user, "x"] {
        login.push(length(text)?);
        login.extend(text.bytes());
    }
    stream.write_all(&login).await?;
    if read(&mut stream).await? != [1, 0] {
        return Ok(None);
    }
    let mut request = vec![5, 1, 0, 3, length(&door.onion)?];
    request.extend(door.onion.bytes());
    request.extend(PORT.to_be_bytes());
    stream.write_all(&request).await?;
    // The bound address, which tor does not fill, is one of IPv4.
    let [_, status, _, kind, ..] = read::<10>(&mut stream).await?;
    Ok((status == 0 && kind == 1).then(|| BufReader::new(stream)))
}

async fn read<const BYTES: usize>(stream: &mut TcpStream) -> io::Result<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

fn length(text: &str) -> io::Result<u8> {
    u8::try_from(text.len()).map_err(io::Error::other)
}

/// Asks for `path` and reads the whole answer. Returns whether the stream serves for another request.
pub(super) async fn get(stream: &mut Stream, door: &Door, path: &str) -> Result<bool, Miss> {
    let asked = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", door.onion);
    // Who refuses may do so before it has read the request.
    let _ = stream.get_mut().write_all(asked.as_bytes()).await;
    let answer = read_answer(stream).await.map_err(|_| Miss::Broken)?;
    match answer {
        Some((200, is_kept)) => Ok(is_kept),
        Some(_) => Err(Miss::Refused),
        None => Err(Miss::Broken),
    }
}

/// Status, and whether the stream is kept; `None` where it ended before.
async fn read_answer(stream: &mut Stream) -> io::Result<Option<(u16, bool)>> {
    let (mut status, mut length, mut is_kept) = (None, 0, true);
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(None);
        }
        let lower = line.trim_end().to_ascii_lowercase();
        if lower.is_empty() {
            break;
        }
        if status.is_none() {
            status = lower.split(' ').nth(1).and_then(|status| status.parse().ok());
        } else if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().map_err(io::Error::other)?;
        } else if lower == "connection: close" {
            is_kept = false;
        }
    }
    let mut body = Vec::new();
    stream.take(length.min(MOST_BODY)).read_to_end(&mut body).await?;
    let is_whole = u64::try_from(body.len()).is_ok_and(|read| read == length);
    Ok(status.filter(|_| is_whole).map(|status| (status, is_kept)))
}
