//! TCP mode: bytes in bulk go from socket to socket inside the kernel (splice(2)); what fits into a buffer is copied, which
//! takes fewer system calls.

use std::{
    cell::RefCell,
    io,
    os::fd::OwnedFd,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

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
/// Most bytes that are copied at once. Whoever fills it sends in bulk.
const BUFFER: usize = 32 * 1024;
/// Empty pipes that a worker keeps.
const KEPT: usize = 64;

thread_local! {
    /// Pipes without content. One that is in use belongs to a connection only while bytes are on their way.
    static PIPES: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
    /// Belongs to a connection only while it is read and written, without a wait between.
    static COPIED: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into());
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
    // The second end needs no word: both sockets are closed then.
    let is_half_done = AtomicBool::new(false);
    let half = |to: &Stream| {
        if !is_half_done.swap(true, Relaxed) {
            // Who has gone needs no end.
            let _ = to.finish();
        }
    };
    let both = async {
        tokio::try_join!(
            async {
                one_way(client, backend, |bytes| pulse.count(bytes, 0)).await?;
                half(backend);
                Ok::<_, io::Error>(())
            },
            async {
                one_way(backend, client, |bytes| pulse.count(0, bytes)).await?;
                half(client);
                Ok(())
            },
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
    let mut is_bulk = false;
    loop {
        let moved =
            if is_bulk { splice_once(from, to, &count).await? } else { copy_once(from, to, &count).await? };
        if moved == 0 {
            return Ok(());
        }
        is_bulk = moved >= BUFFER;
    }
}

/// Copies what is there, as far as it fits into a buffer. Returns how many bytes that were; none is the end.
async fn copy_once(from: &Stream, to: &Stream, count: &impl Fn(usize)) -> io::Result<usize> {
    let copy = || {
        COPIED.with_borrow_mut(|buffer| {
            let read = from.receive(buffer)?;
            let bytes = buffer.get(..read).unwrap_or_default();
            let sent = if bytes.is_empty() { 0 } else { to.send_now(bytes)? };
            count(sent);
            Ok((read, bytes.get(sent..).unwrap_or_default().to_vec()))
        })
    };
    let (read, rest) = from.when(Interest::READABLE, copy).await?;
    let mut rest = rest.as_slice();
    if read < BUFFER {
        from.was_emptied();
    }
    while !rest.is_empty() {
        let sent = to.when(Interest::WRITABLE, || to.send(rest)).await?;
        rest = rest.get(sent..).unwrap_or_default();
        count(sent);
    }
    Ok(read)
}

/// Has the kernel move what is there, as far as it fits into a pipe. Returns how many bytes that were; none is the end.
async fn splice_once(from: &Stream, to: &Stream, count: &impl Fn(usize)) -> io::Result<usize> {
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
    let (pipe, moved) = from.when(Interest::READABLE, fill).await?;
    let mut left = moved;
    while left > 0 {
        let sent =
            to.when(Interest::WRITABLE, || Ok(splice(&pipe.out, None, to, None, left, flags)?)).await?;
        left = left.saturating_sub(sent);
        count(sent);
    }
    pipe.keep();
    Ok(moved)
}
