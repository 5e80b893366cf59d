//! A small page behind an onion service, which says on which circuit it was asked.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};

use super::service::Backend;

/// How long a visitor may be silent.
const SILENCE: Duration = Duration::from_secs(30);

/// The page. It ends when it is dropped.
#[derive(Debug)]
pub struct Page {
    listener: Arc<TcpListener>,
    address: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
}

impl Page {
    /// Listens at a free port of 127.0.0.1.
    ///
    /// # Errors
    /// If there is none.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening for the page")?;
        let address = listener.local_addr()?;
        let listener = Arc::new(listener);
        let own = Arc::clone(&listener);
        let acceptor = thread::spawn(move || {
            // Accepting fails for good once the socket is shut down.
            while let Ok((stream, _)) = own.accept() {
                // A visitor that leaves early ends its own thread.
                thread::spawn(move || drop(answer(&stream)));
            }
        });
        Ok(Self { listener, address, acceptor: Some(acceptor) })
    }

    /// Where it listens.
    pub fn backend(&self) -> Backend {
        Backend::Tcp(self.address)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let _ = nix::sys::socket::shutdown(
            std::os::fd::AsRawFd::as_raw_fd(&*self.listener),
            nix::sys::socket::Shutdown::Both,
        );
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// Answers one request; the PROXY line, if there is one, stands before it.
fn answer(mut stream: &TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let mut proxy = None;
    for line in BufReader::new(stream).lines() {
        let line = line?;
        if line.starts_with("PROXY ") && proxy.is_none() {
            proxy = Some(line);
        } else if line.is_empty() {
            break;
        }
    }
    let body = format!(
        "This page stands behind an onion service of a private Tor network.\n{}\n",
        proxy.as_deref().unwrap_or("No PROXY line came with this stream.")
    );
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    stream.shutdown(Shutdown::Write)
}
