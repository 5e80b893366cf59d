//! Free TCP ports on loopback, held until the program that will listen there is started.

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener},
    ops::Range,
    process,
    sync::Mutex,
};

use anyhow::{Context, Result};

/// Below the range from which the kernel takes ports of outgoing connections (`ip_local_port_range`, from 32 768), so that
/// no connection takes a port that is about to be listened at.
const RANGE: Range<u16> = 16_384..32_768;

/// The port that is tried next: no port is given twice in a row, even when its first user has not listened yet.
static NEXT: Mutex<Option<u16>> = Mutex::new(None);

/// A free port of 127.0.0.1.
#[derive(Debug)]
pub(crate) struct Port {
    /// Where the program shall listen.
    pub(crate) address: SocketAddr,
    // Nobody else can listen there as long as this does.
    held: Option<TcpListener>,
}

impl Port {
    /// Takes a free port.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn take() -> Result<Self> {
        let mut next = NEXT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for _ in RANGE {
            // Another process that looks at the same moment begins elsewhere.
            let begin = || {
                RANGE.start
                    + u16::try_from(process::id() * 97 % u32::from(RANGE.end - RANGE.start)).unwrap_or(0)
            };
            let number = next.unwrap_or_else(begin);
            *next = Some(if number + 1 < RANGE.end { number + 1 } else { RANGE.start });
            let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, number).into();
            if let Ok(listener) = TcpListener::bind(address) {
                return Ok(Self { address, held: Some(listener) });
            }
        }
        None.context("no port of 127.0.0.1 is free")
    }

    /// Lets the program have it.
    pub(crate) fn release(&mut self) {
        self.held = None;
    }
}
