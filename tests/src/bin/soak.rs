//! The ingress and the daemon under a flood of ten times the ingress' limits, for long: whether their memory stays flat.
//!
//! `cargo xtask soak` builds and starts it. It needs root, and changes nothing outside its own namespaces.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output is for the person at the terminal")]

use std::{
    fs,
    path::PathBuf,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::Parser;
use nix::{
    sys::signal::{SigSet, Signal},
    unistd::geteuid,
};
use tunica_tests::soak::{self, MOST_GROWTH, Plan, Statistic};

/// From one look to the next.
const EVERY: Duration = Duration::from_secs(10);

/// Set by Ctrl-C and its kin.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Floods ingress and daemon with ten times what the limits allow, over HTTP and over TCP, and says whether their memory stays
/// flat.
#[derive(Parser)]
#[command(name = "soak", bin_name = "cargo xtask soak")]
struct Arguments {
    /// How long, in minutes; the first sixth is not judged.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(2..=10_080))]
    minutes: u64,
    /// Where `soak.md` is written.
    #[arg(long, default_value = "target/soak")]
    out: PathBuf,
    /// Write it to `docs` as well.
    #[arg(long)]
    write_docs: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    if !geteuid().is_root() {
        bail!("the soak needs root, because it makes network namespaces and loads kernel programs");
    }
    listen_for_signals()?;
    let length = Duration::from_secs(60 * arguments.minutes);
    let plan =
        Plan { length, warm_up: length / 6, every: EVERY, table_size: None, judged_by: Statistic::Median };
    let courses = soak::run(&plan, &INTERRUPTED, |look, protocol| {
        println!(
            "{:5} s  {:4}  tunica-front {:7} KiB, {:5} descriptors  tunicad {:7} KiB  {:.0} connections, {:.0} circuits, {:.0} banned",
            look.at.as_secs(),
            protocol.title(),
            look.front.memory,
            look.front.descriptors,
            look.daemon.memory,
            look.sum("tunica_front_connections_total"),
            look.sum("tunica_circuits_tracked"),
            look.sum("tunica_circuits_banned"),
        );
    })?;
    let page = soak::markdown(&courses, &plan, MOST_GROWTH);
    let docs = arguments.write_docs.then(|| PathBuf::from("docs"));
    for folder in std::iter::once(arguments.out.clone()).chain(docs) {
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let path = folder.join("soak.md");
        fs::write(&path, &page).with_context(|| format!("writing {}", path.display()))?;
        println!("Wrote {}", path.display());
    }
    println!("\n{}", soak::text(&courses, &plan));
    soak::judge(&courses, &plan, MOST_GROWTH)
}

fn listen_for_signals() -> Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block().context("blocking signals")?;
    let wait = move || {
        while signals.wait().is_ok() {
            INTERRUPTED.store(true, Ordering::Relaxed);
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(wait).context("starting a thread for signals")?;
    Ok(())
}
