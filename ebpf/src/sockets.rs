//! What sockets this host has for a packet.
//!
//! `unsafe` here calls the kernel's look-ups: every tuple and header is as long as the helper reads, which the verifier
//! checks, and every socket found is released once, before it is forgotten.

use aya_ebpf::{
    EbpfContext,
    bindings::{
        bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
    },
    helpers::generated::{
        bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_raw_check_syncookie_ipv4,
        bpf_tcp_raw_check_syncookie_ipv6,
    },
};

use crate::packet::{Frame, PROTOCOL_UDP, Packet};

/// `TCP_LISTEN` in include/net/tcp_states.h.
const TCP_LISTEN: u32 = 10;
/// `BPF_F_CURRENT_NETNS`: the network namespace of the interface.
const CURRENT_NETNS: u64 = u64::MAX;

/// Which socket a packet finds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Socket {
    None,
    Listener,
    /// Of this very connection, in whatever state, `TIME_WAIT` too; for UDP: of this port.
    Own,
}

/// The socket that the kernel would hand a TCP segment or a UDP packet to.
#[inline(always)]
pub fn find(frame: &Frame<'_>, packet: &Packet) -> Socket {
    let is_udp = packet.protocol == PROTOCOL_UDP;
    let (source_port, destination_port) = (packet.source_port.to_be(), packet.destination_port.to_be());
    let [source_high, source_low] = packet.source;
    let [destination_high, destination_low] = packet.destination;
    if packet.is_v4 {
        let mut tuple = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
            saddr: (source_low >> 32) as u32,
            daddr: (destination_low >> 32) as u32,
            sport: source_port,
            dport: destination_port,
        };
        look_up(frame, (&raw mut tuple).cast(), size_of_val(&tuple) as u32, is_udp)
    } else {
        let mut tuple = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
            saddr: halves(source_high, source_low),
            daddr: halves(destination_high, destination_low),
            sport: source_port,
            dport: destination_port,
        };
        look_up(frame, (&raw mut tuple).cast(), size_of_val(&tuple) as u32, is_udp)
    }
}

#[inline(always)]
const fn halves(high: u64, low: u64) -> [u32; 4] {
    [high as u32, (high >> 32) as u32, low as u32, (low >> 32) as u32]
}

#[inline(always)]
fn look_up(frame: &Frame<'_>, tuple: *mut bpf_sock_tuple, bytes: u32, is_udp: bool) -> Socket {
    let ctx = frame.xdp().as_ptr();
    // SAFETY: the tuple is `bytes` long, as the verifier checks; a socket found is released once, before it is forgotten.
    unsafe {
        if is_udp {
            let socket = bpf_sk_lookup_udp(ctx, tuple, bytes, CURRENT_NETNS, 0);
            if socket.is_null() {
                return Socket::None;
            }
            bpf_sk_release(socket.cast());
            return Socket::Own;
        }
        let socket = bpf_skc_lookup_tcp(ctx, tuple, bytes, CURRENT_NETNS, 0);
        if socket.is_null() {
            return Socket::None;
        }
        let state = (*socket).state;
        bpf_sk_release(socket.cast());
        if state == TCP_LISTEN { Socket::Listener } else { Socket::Own }
    }
}

/// Whether the segment acknowledges a SYN cookie of this host, made here or by the kernel.
#[inline(always)]
pub fn returns_cookie(frame: &Frame<'_>, packet: &Packet) -> bool {
    let Some(mut tcp) = frame.get::<20>(packet.transport) else { return false };
    let [source_high, source_low] = packet.source;
    let [destination_high, destination_low] = packet.destination;
    // The helpers read nothing of the IP header but the addresses.
    if packet.is_v4 {
        let mut ip = [0x45, 0, 0, (source_low >> 32) as u32, (destination_low >> 32) as u32];
        // SAFETY: both headers are as long as the helper reads, which the verifier checks.
        unsafe { bpf_tcp_raw_check_syncookie_ipv4(ip.as_mut_ptr().cast(), tcp.as_mut_ptr().cast()) == 0 }
    } else {
        let mut ip = [0x60, source_high, source_low, destination_high, destination_low];
        // SAFETY: as above.
        unsafe { bpf_tcp_raw_check_syncookie_ipv6(ip.as_mut_ptr().cast(), tcp.as_mut_ptr().cast()) == 0 }
    }
}
