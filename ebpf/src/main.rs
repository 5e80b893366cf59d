//! The shield: the packet filter of Tunica, an XDP program.
//!
//! It parses, decides and counts. Every number it decides by stands in a map that the daemon fills; without a policy
//! it passes everything. It never allocates, never loops without a bound, and drops only what a [`Verdict`] names.
//!
//! [`Verdict`]: tunica_common::verdict::Verdict
#![no_std]
#![no_main]
// Two loads of `packet.rs` are written in assembly, which is unstable for this target.
#![feature(asm_experimental_arch)]

mod candidate;
mod handshake;
mod limit;
mod packet;
mod segment;
mod shield;
mod sockets;
mod syncookie;
mod tables;

use aya_ebpf::{
    macros::{sock_ops, xdp},
    programs::{SockOpsContext, XdpContext},
};

use crate::packet::Frame;

/// Entry point. The flag `frags` and the attach type never change between versions, because a link's program can
/// only be replaced by one of the same kind.
#[xdp(frags)]
pub fn shield(ctx: XdpContext) -> u32 {
    shield::judge(&ctx)
}

/// Answers a SYN to a port that is over its budget; the shield jumps here.
#[xdp(frags)]
pub fn cookie(ctx: XdpContext) -> u32 {
    syncookie::judge(&Frame::of(&ctx))
}

/// Judges a segment by its socket; the shield jumps here.
#[xdp(frags)]
pub fn segment(ctx: XdpContext) -> u32 {
    segment::judge(&Frame::of(&ctx))
}

/// Counts handshakes that completed; attached to the root of the control groups. It lets every socket be.
#[sock_ops]
pub fn handshake(ctx: SockOpsContext) -> u32 {
    handshake::completed(&ctx);
    1
}

/// The kernel lets only GPL-compatible programs call some helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
