//! Asking the live program what it would do, without touching its state.
//!
//! `BPF_PROG_TEST_RUN` changes maps like a real packet would. So the same object is loaded once more with maps of its own, and
//! everything the program can consult about one source is copied into them: policy, heartbeat, ban row, allow-list
//! answer, own-address row, sketch cells. The copy has the live program's tag, so it is the same code.

use std::net::IpAddr;

use aya::{
    Ebpf,
    programs::{ProgramError, TestRun, TestRunOptions},
};
use thiserror::Error;
use tunica_common::{
    event::tally_slot,
    keys::{AddressBytes, SourceKey},
    verdict::{Action, Verdict},
};

use super::{
    object::{self, LoadError, Sizes},
    tables::{TableError, Tables, Total},
};

/// Why a probe could not be run.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// The copy could not be loaded.
    #[error("cannot load a copy of the shield: {0}")]
    Load(#[from] LoadError),
    /// A map could not be read or written.
    #[error("cannot copy the shield's state: {0}")]
    Table(#[from] TableError),
    /// The kernel refused to run the packet.
    #[error("the kernel did not run the probe: {0}")]
    Run(#[from] ProgramError),
    /// The program ran but counted nothing.
    #[error(
        "the program counted the probe under no verdict this daemon knows; program and daemon are of different versions"
    )]
    Uncounted,
}

/// A private copy of the shield.
pub struct Copy {
    ebpf: Ebpf,
    tables: Tables,
    totals: Vec<Total>,
}

impl Copy {
    /// Copies everything that matters for packets from `address`, which counts as `key`.
    ///
    /// # Errors
    /// [`ProbeError`]; the live shield is only read.
    pub fn of(
        live: &Tables,
        sizes: Sizes,
        address: AddressBytes,
        key: &SourceKey,
    ) -> Result<Self, ProbeError> {
        let mut ebpf = object::load(sizes, None)?;
        let mut tables = Tables::take(&mut ebpf, live.secret())?;
        tables.beat(live.last_beat()?)?;
        if let Some(ban) = live.ban(key)? {
            tables.set_ban(key, &ban)?;
        }
        if let Some(entry) = live.allow_of(address)? {
            tables.set_allow((128, address), &entry)?;
        }
        if live.own()?.contains(&address) {
            tables.add_own(address)?;
        }
        tables.set_cells(key, &live.cells(key)?)?;
        tables.swap_policy(&live.policy()?)?;
        let totals = tables.totals()?;
        Ok(Self { ebpf, tables, totals })
    }

    /// Runs one frame through the copy and says what became of it.
    ///
    /// # Errors
    /// [`ProbeError`].
    pub fn run(&mut self, frame: &[u8]) -> Result<(Verdict, Action), ProbeError> {
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        object::program(&mut self.ebpf)?.test_run(options)?;
        let after = self.tables.totals()?;
        let before = std::mem::replace(&mut self.totals, after);
        Verdict::ALL
            .iter()
            .flat_map(|verdict| Action::ALL.map(|action| (*verdict, action)))
            .find(|(verdict, action)| {
                let slot = tally_slot(*verdict, *action) as usize;
                self.totals
                    .get(slot)
                    .zip(before.get(slot))
                    .is_some_and(|(now, then)| now.packets > then.packets)
            })
            .ok_or(ProbeError::Uncounted)
    }
}

/// An Ethernet frame with a TCP SYN from `source` to port `port` of an address set aside for documentation (RFC 5737, RFC 3849).
///
/// Checksums are left zero: the shield reads none.
pub fn syn(source: IpAddr, source_port: u16, port: u16) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    match source {
        IpAddr::V4(source) => {
            frame.extend([0x08, 0x00, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
            frame.extend(source.octets());
            frame.extend([192, 0, 2, 1]);
        }
        IpAddr::V6(source) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
            frame.extend(source.octets());
            frame.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        }
    }
    frame.extend(source_port.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    frame
}
