//! The line to `tunicad`: a digest each second, orders back. The front serves on without it.

use std::{io, path::Path, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tunica_api::{
    front::{BackendHealth, Digest, MAX_ORDER_BYTES, Orders},
    wire,
};

use crate::{backend::Backends, circuits::Circuits};

const EVERY: Duration = Duration::from_secs(1);
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Which front speaks.
#[derive(Clone, Copy, Debug)]
pub struct Speaker {
    /// Differs from one process to the next.
    pub process: u64,
    /// What it goes by, see [`tunica_config::front_mark()`].
    pub configuration: u64,
}

/// Speaks with the daemon at `socket` as long as this process lives, and has circuits advance. Never returns.
pub async fn speak(socket: &Path, circuits: Arc<Circuits>, backends: Arc<Backends>, speaker: Speaker) {
    let mut orders = Orders::default();
    let mut is_away = false;
    loop {
        match converse(socket, &circuits, &backends, speaker, &mut orders).await {
            Err(error) if !is_away => {
                tracing::warn!(
                    message_id = "daemon_away",
                    %error,
                    "tunicad does not answer at {}; the ingress goes on with its last orders",
                    socket.display()
                );
                is_away = true;
            }
            Err(_) => {}
            Ok(()) => is_away = false,
        }
        circuits.advance();
        sleep(EVERY).await;
    }
}

/// One conversation. `Ok`: the daemon closed it after it had answered.
async fn converse(
    socket: &Path,
    circuits: &Circuits,
    backends: &Backends,
    speaker: Speaker,
    orders: &mut Orders,
) -> io::Result<()> {
    let (read, mut write) = UnixStream::connect(socket).await?.into_split();
    let mut read = BufReader::new(read);
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut line = Vec::new();
    loop {
        tokio::select! {
            _ = tick.tick() => {
                circuits.advance();
                let message = wire::write_message(&digest(circuits, backends, speaker, orders.revision));
                let message = message.map_err(io::Error::other)?;
                timeout(WRITE_TIMEOUT, write.write_all(&message)).await.map_err(|_| io::ErrorKind::TimedOut)??;
            }
            // What was read of a line stays in `line` if the tick comes between.
            read = next(&mut read, &mut line) => {
                if !read? {
                    return Ok(());
                }
                let new: Orders = wire::read_message(&line).map_err(io::Error::other)?;
                line.clear();
                circuits.hear_load(new.load);
                circuits.hear_bypass(new.bypass);
                circuits.hear_tokens(new.tokens.as_ref());
                // What is not for this process it has not followed, and does not say so.
                if circuits.follow(orders, &new) {
                    *orders = new;
                }
            }
        }
    }
}

fn digest(circuits: &Circuits, backends: &Backends, speaker: Speaker, revision: u64) -> Digest {
    Digest {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        process: speaker.process,
        configuration: speaker.configuration,
        revision,
        backends: backends
            .health()
            .into_iter()
            .map(|(place, is_well)| BackendHealth { place: place.to_string(), is_well })
            .collect(),
        ..circuits.digest()
    }
}

/// Reads to the end of a line; false: there is none.
async fn next(read: &mut (impl AsyncBufReadExt + Unpin), line: &mut Vec<u8>) -> io::Result<bool> {
    let room = (MAX_ORDER_BYTES + 1).saturating_sub(line.len()) as u64;
    read.take(room).read_until(b'\n', line).await?;
    if line.len() > MAX_ORDER_BYTES {
        return Err(io::Error::other(format!("orders have at most {MAX_ORDER_BYTES} bytes")));
    }
    Ok(line.ends_with(b"\n"))
}
