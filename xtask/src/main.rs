//! `cargo xtask`: one entry point for developers. Continuous integration calls the same commands.
//!
//! A host program: it is never shipped, and it may know every other crate.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "its output is for the developer at the terminal"
)]

use std::{env, process::ExitCode};

use build_ebpf::compiler;
use clap::Parser;

mod build_ebpf;
mod deny;
mod fuzz;
mod generate;
mod laboratory;
mod process;
mod setup;
mod test;
mod test_vm;
mod testnet;
mod tidy;
mod workspace;

/// Developer commands of Tunica.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Command {
    /// Says what development and tests need and why, then installs what is missing.
    Setup(setup::Arguments),
    /// Builds the kernel programs into `ebpf/prebuilt/`.
    BuildEbpf(build_ebpf::Arguments),
    /// Measures what the shield costs, against other programs.
    Bench(laboratory::Arguments),
    /// Plays the demo: a host under attack, with and without Tunica.
    Demo(laboratory::Arguments),
    /// Checks licences and origins of all dependencies.
    Deny(deny::Arguments),
    /// Searches for bytes from outside that break a promise.
    Fuzz(fuzz::Arguments),
    /// Writes the files that are generated from code.
    Generate(generate::Arguments),
    /// Floods ingress and daemon with ten times what the limits allow, for long: whether their memory stays flat.
    Soak(laboratory::Arguments),
    /// Cheap checks of the tree's structure, all problems at once.
    Tidy,
    /// Every check and every test; `--quick` for the fast ones.
    Test(test::Arguments),
    /// Tries the shield in Debian's kernels, each booted in a virtual machine.
    TestVm(test_vm::Arguments),
    /// A private Tor network on this machine, with an onion service and a SOCKS port.
    Testnet(testnet::Arguments),
}

fn main() -> ExitCode {
    // First of all: a build of the workspace puts another file in this one's place.
    process::note_own_program();
    let done = match env::var_os(compiler::TREE) {
        Some(tree) => compiler::run(&tree),
        None => run(Command::parse()).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Setup(arguments) => setup::run(&arguments),
        Command::BuildEbpf(arguments) => build_ebpf::run(&arguments),
        Command::Bench(arguments) => laboratory::BENCH.run(&arguments),
        Command::Demo(arguments) => laboratory::DEMO.run(&arguments),
        Command::Deny(arguments) => deny::run(&arguments),
        Command::Fuzz(arguments) => fuzz::run(&arguments),
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Soak(arguments) => laboratory::SOAK.run(&arguments),
        Command::Tidy => tidy::run(),
        Command::Test(arguments) => test::run(&arguments),
        Command::TestVm(arguments) => test_vm::run(&arguments),
        Command::Testnet(arguments) => testnet::run(&arguments),
    }
}
