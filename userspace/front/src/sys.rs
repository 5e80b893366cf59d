//! System calls that no library offers safely.
#![expect(
    unsafe_code,
    reason = "one socket option, descriptors that systemd hands over by number, and a word to the allocator"
)]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    time::Duration,
};

use tunica_systemd::FIRST_SOCKET;

/// Has the kernel hand over connections only once their first bytes are there, or after `patience` (`TCP_DEFER_ACCEPT`,
/// tcp(7)).
///
/// # Errors
/// The kernel's.
pub(crate) fn defer_accept(socket: BorrowedFd<'_>, patience: Duration) -> io::Result<()> {
    let seconds = i32::try_from(patience.as_secs()).unwrap_or(i32::MAX);
    let (level, option) = (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT);
    let size = libc::socklen_t::try_from(size_of_val(&seconds)).unwrap_or(0);
    // SAFETY: the descriptor is open, and the kernel reads as many bytes as an i32 has from where one lies.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const seconds).cast(), size) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The descriptors that were handed over to this process: by tunicad, which says how many, or by systemd (sd_listen_fds(3)). To
/// be called once, before anything else opens a file.
pub fn handed_over(by_daemon: Option<i32>) -> Vec<OwnedFd> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<i32>().ok();
    let is_for_us = number("LISTEN_PID") == i32::try_from(std::process::id()).ok();
    let by_systemd = || number("LISTEN_FDS").filter(|_| is_for_us);
    let count = by_daemon.or_else(by_systemd).unwrap_or(0).clamp(0, 64);
    // SAFETY: whoever started it opened these for this process, from there on, and nobody else here owns them.
    (FIRST_SOCKET..FIRST_SOCKET + count).map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect()
}

/// Gives the kernel the pages of which the allocator uses nothing (malloc_trim(3)); no other thread can allocate from a part of
/// the heap while it is looked through. Does nothing where the allocator is not glibc's.
pub(crate) fn give_back_free_pages() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's own locks, and only memory that nobody holds is given back.
    unsafe {
        libc::malloc_trim(0);
    }
}
