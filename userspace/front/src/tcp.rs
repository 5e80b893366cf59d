//! TCP mode: bytes go from socket to socket inside the kernel (splice(2)), never through this process.

use std::{cell::RefCell, io, os::fd::OwnedFd, time::Duration};

use nix::{
    fcntl::{OFlag, SpliceFFlags, splice},
    unistd::pipe2,
};
use tokio::{
    io::{AsyncWriteExt, Interest},
    time::timeout,
};

use crate::{pulse::Pulse, stream::Stream};

pub mod handshake;

/// Most bytes of one splice, the usual capacity of a pipe (pipe(7)).
const MOST: usize = 65_536;
/// Empty pipes that a worker keeps.
const KEPT: usize = 64;

thread_local! {
    /// Pipes without content. One that is in use belongs to a connection only while bytes are on their way.
    static PIPES: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
}

impl Pipe {
    fn take() -> io::Result<Self> {
        if let Some(pipe) = PIPES.with_borrow_mut(Vec::pop) {
            return Ok(pipe);
        }
        let (out, into) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
        Ok(Self { out, into })
    }

    /// To be given back empty.
    fn keep(self) {
        PIPES.with_borrow_mut(|pipes| {
            if pipes.len() < KEPT {
                pipes.push(self);
            }
        });
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Both ends were done.
    Finished,
    /// One of them broke off.
    Broken,
    /// Nothing came from either for too long.
    Idle,
}

/// Carries bytes both ways until both ends are done, one breaks off, or nothing comes from either for `idle`. `first` was
/// read from the client already.
pub async fn carry(
    client: &Stream,
    backend: &mut Stream,
    first: &[u8],
    idle: Duration,
    pulse: &Pulse,
) -> End {
    if backend.write_all(first).await.is_err() {
        return End::Broken;
    }
    pulse.count(first.len(), 0);
    let backend = &*backend;
    let both = async {
        tokio::try_join!(
            one_way(client, backend, |bytes| pulse.count(bytes, 0)),
            one_way(backend, client, |bytes| pulse.count(0, bytes)),
        )
    };
    tokio::pin!(both);
    loop {
        let before = pulse.bytes();
        match timeout(idle, &mut both).await {
            Ok(Ok(_)) => return End::Finished,
            Ok(Err(_)) => return End::Broken,
            Err(_) if pulse.bytes() == before => return End::Idle,
            Err(_) => {}
        }
    }
}

async fn one_way(from: &Stream, to: &Stream, count: impl Fn(usize)) -> io::Result<()> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    // A pipe belongs to a connection only from here to the end of a turn: an idle one holds none.
    let fill = || {
        let pipe = Pipe::take()?;
        match splice(from, None, &pipe.into, None, MOST, flags) {
            Ok(bytes) => Ok((pipe, bytes)),
            Err(error) => {
                pipe.keep();
                Err(error.into())
            }
        }
    };
    loop {
        let (pipe, mut left) = from.when(Interest::READABLE, fill).await?;
        if left == 0 {
            pipe.keep();
            // Who has gone needs no end.
            let _ = to.finish();
            return Ok(());
        }
        while left > 0 {
            let sent =
                to.when(Interest::WRITABLE, || Ok(splice(&pipe.out, None, to, None, left, flags)?)).await?;
            left = left.saturating_sub(sent);
            count(sent);
        }
        pipe.keep();
    }
}
