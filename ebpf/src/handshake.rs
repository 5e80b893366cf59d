//! Handshakes that completed: the one thing about a peer's address that cannot be forged.
//!
//! The kernel calls this program for every connection that a listener of the host's network namespace establishes. Each
//! source that ever completed a handshake has an exact row, and only this program makes rows, so a flood with forged
//! sources neither makes nor evicts one. A handshake beyond the source's pace is a violation with proof.
//!
//! Connections from the host itself are left out: through loopback come the streams of every client of an onion service.

use core::arch::asm;

use aya_ebpf::{
    EbpfContext, bindings::BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, helpers::generated::bpf_get_netns_cookie,
    programs::SockOpsContext,
};
use tunica_common::{
    event::Proof,
    gcra::paced,
    keys::{AddressBytes, SourceKey},
    policy::{MODE_OFF, Verified},
};

use crate::tables;

/// `AF_INET` and `AF_INET6` in include/linux/socket.h.
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
/// The first twelve bytes of a mapped IPv4 address (RFC 4291 section 2.5.5.2).
const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// Takes in one callback of a socket.
#[inline(always)]
pub fn completed(ctx: &SockOpsContext) {
    if ctx.op() != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB {
        return;
    }
    let Some(policy) = tables::policy() else { return };
    if policy.mode == MODE_OFF || policy.handshake_pace[0] == 0 {
        return;
    }
    // SAFETY: the context pointer is the one the kernel gave.
    if unsafe { bpf_get_netns_cookie(ctx.as_ptr()) } != policy.netns_cookie {
        return;
    }
    let peer = Peer::of(ctx);
    let address = match peer.family {
        AF_INET => v4(peer.v4.to_ne_bytes()),
        AF_INET6 => v6(peer.v6),
        _ => return,
    };
    let [.., a, b, c, d] = address;
    let [head @ .., _, _, _, _] = address;
    let key = if head == MAPPED {
        if a == 127 {
            return;
        }
        SourceKey::v4([a, b, c, d])
    } else {
        let [p, q, r, s, t, u, v, w, ..] = address;
        SourceKey::v6([p, q, r, s, t, u, v, w])
    };
    if tables::is_own(&address) {
        return;
    }
    let now = tables::now();
    let Some(row) = tables::verified(&key) else {
        let tat = now + policy.handshake_pace[0];
        tables::verify(&key, &Verified { tat, since_ns: now, last_ns: now, handshakes: 1, violations: 0 });
        return;
    };
    row.last_ns = now;
    row.handshakes += 1;
    match paced(row.tat, now, policy.handshake_pace) {
        Some(next) => row.tat = next,
        None => {
            row.violations += 1;
            tables::prove(&Proof {
                time_ns: now,
                source: address,
                violations: row.violations,
                port: peer.local_port,
                reserved: 0,
            });
        }
    }
}

/// The far end of a connection, and the port here.
struct Peer {
    family: u32,
    v4: u32,
    v6: [u32; 4],
    local_port: u32,
}

impl Peer {
    /// Reads the context, each field at its own constant offset: the compiler would choose between pointers first, which
    /// the verifier refuses.
    #[inline(always)]
    fn of(ctx: &SockOpsContext) -> Self {
        let (family, v4, first, second, third, fourth, local_port): (u32, u32, u32, u32, u32, u32, u32);
        // SAFETY: the loads lie inside `struct bpf_sock_ops` (include/uapi/linux/bpf.h): family, remote_ip4, the four
        // words of remote_ip6, local_port.
        unsafe {
            asm!(
                "{family} = *(u32 *)({ctx} + 20)",
                "{v4} = *(u32 *)({ctx} + 24)",
                "{first} = *(u32 *)({ctx} + 32)",
                "{second} = *(u32 *)({ctx} + 36)",
                "{third} = *(u32 *)({ctx} + 40)",
                "{fourth} = *(u32 *)({ctx} + 44)",
                "{local_port} = *(u32 *)({ctx} + 68)",
                ctx = in(reg) ctx.ops,
                family = out(reg) family,
                v4 = out(reg) v4,
                first = out(reg) first,
                second = out(reg) second,
                third = out(reg) third,
                fourth = out(reg) fourth,
                local_port = out(reg) local_port,
                options(nostack, preserves_flags, readonly, pure),
            );
        }
        Self { family, v4, v6: [first, second, third, fourth], local_port }
    }
}

#[inline(always)]
const fn v4([a, b, c, d]: [u8; 4]) -> AddressBytes {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

#[inline(always)]
const fn v6([first, second, third, fourth]: [u32; 4]) -> AddressBytes {
    let [a, b, c, d] = first.to_ne_bytes();
    let [e, f, g, h] = second.to_ne_bytes();
    let [i, j, k, l] = third.to_ne_bytes();
    let [m, n, o, p] = fourth.to_ne_bytes();
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}
