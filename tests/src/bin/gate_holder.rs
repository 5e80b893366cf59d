//! A process that opens the circuit gate and then does nothing: tests kill it to see what stays.
//!
//! Arguments: the directory of pins, the port, then circuits to ban. It says `ready` once they are banned.
#![allow(clippy::print_stdout, reason = "the parent waits for the word")]

use std::{env, num::NonZeroU16, path::PathBuf, sync::Arc, thread};

use anyhow::{Context, Result};
use tunica_core::limits::Mode;
use tunica_tests::gate::desired;
use tunicad::shell::{gate::Gate, xdp::pins::Pins};

fn main() -> Result<()> {
    let mut arguments = env::args().skip(1);
    let root = PathBuf::from(arguments.next().context("where are the pins?")?);
    let port: NonZeroU16 = arguments.next().context("which port?")?.parse()?;
    let circuits: Vec<u32> = arguments.map(|circuit| circuit.parse()).collect::<Result<_, _>>()?;
    let pins = Arc::new(Pins::claim(&root)?);
    let mut gate = Gate::open(&pins, &[port])?;
    gate.follow(&desired(Mode::Enforce, 1, &circuits)?)?;
    println!("ready");
    loop {
        thread::park();
    }
}
