//! The daemon's only `unsafe`: calls that no library here wraps.

use std::{
    io, mem,
    os::fd::{AsRawFd, BorrowedFd},
};

/// Lets receiving on `socket` fail after `seconds` instead of waiting for ever.
///
/// # Errors
/// The system's.
pub fn set_receive_timeout(socket: &impl AsRawFd, seconds: i64) -> io::Result<()> {
    // SAFETY: the descriptor is open as long as the borrow of `socket` lives.
    let fd = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
    let timeout = nix::sys::time::TimeVal::new(seconds, 0);
    nix::sys::socket::setsockopt(&fd, nix::sys::socket::sockopt::ReceiveTimeout, &timeout)?;
    Ok(())
}

/// A value of `CLOCK_MONOTONIC` in nanoseconds, the clock that BPF programs read.
///
/// # Errors
/// The system's; Linux gives none.
pub fn monotonic_ns() -> io::Result<u64> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
    let seconds = u64::try_from(now.tv_sec()).map_err(io::Error::other)?;
    let nanoseconds = u64::try_from(now.tv_nsec()).map_err(io::Error::other)?;
    Ok(seconds * 1_000_000_000 + nanoseconds)
}

/// What the driver of `interface` says of large-receive offload, or `None` where it does not answer
/// (`ETHTOOL_GFLAGS`, include/uapi/linux/ethtool.h).
///
/// # Errors
/// The system's, if not even a socket can be had.
pub fn large_receive_offload(interface: &str) -> io::Result<Option<bool>> {
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    const ETHTOOL_GFLAGS: u32 = 0x25;
    const ETH_FLAG_LRO: u32 = 1 << 15;
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
    let mut value = Value { command: ETHTOOL_GFLAGS, data: 0 };
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Ok(None);
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the kernel reads the name, which ends with a zero, and writes 8 bytes to `value`, which lives on.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    Ok((result == 0).then_some(value.data & ETH_FLAG_LRO != 0))
}
