//! The demo's service: a web server with few workers and an expensive page, as many are.
//!
//! Argument: the address to listen at. It says `ready` once it listens. A worker takes one connection, answers one request, and
//! closes; what no worker is free for waits in the kernel's queue, which has an end. `/` costs CPU time, everything else next to
//! none. The process keeps to one core: the machine that plays the demo is the Tor network, too, and that would not live beside
//! a service that takes all cores.
#![allow(clippy::print_stdout, reason = "the parent waits for the word")]

use std::{
    env, hint,
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
        sockopt,
    },
    time::{ClockId, clock_gettime},
    unistd::Pid,
};
use tunica_tests::circuit_act::{BACKLOG, PAGE_CPU, WORKERS};

/// How long a client may be silent.
const SILENCE: Duration = Duration::from_secs(5);

/// Longest head of a request, bytes.
const MOST_HEAD: usize = 8_192;

fn main() -> Result<()> {
    let address: SocketAddr = env::args().nth(1).context("where shall it listen?")?.parse()?;
    keep_to_one_core().context("keeping to one core")?;
    let listener = Arc::new(listen_at(address).with_context(|| format!("listening at {address}"))?);
    for _ in 0..WORKERS {
        let listener = Arc::clone(&listener);
        thread::spawn(move || {
            loop {
                // Who breaks off gets no answer; where no descriptor is free the next may be.
                let _ = listener.accept().and_then(|(stream, _)| serve(&stream));
            }
        });
    }
    println!("ready");
    loop {
        thread::park();
    }
}

/// The last core that this process may use: the kernel puts the rest of the machine on the others.
fn keep_to_one_core() -> nix::Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let is_allowed = |core: &usize| allowed.is_set(*core).unwrap_or(false);
    let mut one = CpuSet::new();
    one.set((0..CpuSet::count()).rev().find(is_allowed).unwrap_or(0))?;
    sched_setaffinity(this, &one)
}

fn listen_at(address: SocketAddr) -> Result<TcpListener> {
    let listener = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&listener, sockopt::ReuseAddr, &true)?;
    bind(listener.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&listener, Backlog::new(BACKLOG)?)?;
    Ok(TcpListener::from(listener))
}

fn serve(mut stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let (mut head, mut piece) = (Vec::new(), [0; 1_024]);
    while !head.ends_with(b"\r\n\r\n") {
        let read = stream.read(&mut piece)?;
        if read == 0 || head.len() + read > MOST_HEAD {
            return Ok(());
        }
        head.extend(piece.iter().take(read));
    }
    let body = if head.starts_with(b"GET / ") {
        burn()?;
        "<!doctype html><title>A page that costs</title>"
    } else {
        "/* what belongs to it */"
    };
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())?;
    stream.shutdown(Shutdown::Write)
}

/// Works for as long as a page costs.
fn burn() -> io::Result<()> {
    let used = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
    let end = used()? + PAGE_CPU;
    let mut mixed = 1_u64;
    while used()? < end {
        for _ in 0..1_000 {
            mixed = hint::black_box(mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(7));
        }
    }
    Ok(())
}
