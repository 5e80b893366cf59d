//! The daemon's only `unsafe`: calls that no library here wraps.

use std::{
    ffi::CString,
    io, mem,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya::maps::{MapData, RingBuf};
use netlink_sys::Socket;
use tokio::io::{Interest, unix::AsyncFd};

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

/// Lets the runtime wait for events in a ring buffer.
///
/// # Errors
/// The system's, if it cannot be waited for.
pub fn watch(ring: RingBuf<MapData>) -> io::Result<AsyncFd<RingBuf<MapData>>> {
    // SAFETY: the ring buffer owns its descriptor from creation to drop and gives no way to exchange it.
    unsafe { AsyncFd::register(ring) }.map_err(|error| io::Error::other(error.to_string()))
}

/// Lets the runtime wait for the end of a process by its handle (pidfd_open(2)).
///
/// # Errors
/// The system's, if it cannot be waited for.
pub fn watch_process(handle: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: it owns its descriptor from creation to drop and gives no way to exchange it.
    unsafe { AsyncFd::register_with_interest(handle, Interest::READABLE) }
        .map_err(|error| io::Error::other(error.to_string()))
}

/// Lets the runtime wait for messages on a netlink socket.
///
/// # Errors
/// The system's, if it cannot be waited for.
pub fn watch_socket(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: the socket owns its descriptor from creation to drop and gives no way to exchange it.
    unsafe { AsyncFd::register(socket) }.map_err(|error| io::Error::other(error.to_string()))
}

/// How far the kernel trusts the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Whether a time service keeps it in step.
    pub is_synchronised: bool,
    /// Largest error that the kernel reckons with, in microseconds; it grows while nobody corrects the clock.
    pub most_error_microseconds: u64,
}

/// What the kernel says of the wall clock (adjtimex(2), reading only).
///
/// # Errors
/// The system's; EPERM where a filter of system calls forbids it.
pub fn clock() -> io::Result<Clock> {
    // SAFETY: all-zero bytes are a valid `timex`; with `modes` 0 it asks for nothing to be changed.
    let mut answer: libc::timex = unsafe { mem::zeroed() };
    // SAFETY: the kernel reads and writes one `timex`, which outlives the call.
    if unsafe { libc::adjtimex(&raw mut answer) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Clock {
        is_synchronised: answer.status & libc::STA_UNSYNC == 0,
        most_error_microseconds: u64::try_from(answer.maxerror).unwrap_or(0),
    })
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

/// How many rows a hash map of BPF holds, asked in a few calls of many rows each (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6): for
/// a map of LRU kind reading so marks no row as used. Rows that come or go meanwhile may be counted or not; the count stops
/// above `most`.
///
/// # Errors
/// The system's.
pub fn count_rows(map: BorrowedFd<'_>, key_bytes: usize, value_bytes: usize, most: u64) -> io::Result<u64> {
    const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
    /// Rows of one call. A bucket must fit in, which of a hash map are many with a row or two each.
    const ROWS: u32 = 4_096;
    /// The member `batch` of `union bpf_attr`.
    #[repr(C)]
    struct Batch {
        in_batch: u64,
        out_batch: u64,
        keys: u64,
        values: u64,
        count: u32,
        map_fd: u32,
        elem_flags: u64,
        flags: u64,
    }
    let (mut keys, mut values) =
        (vec![0u8; key_bytes * ROWS as usize], vec![0u8; value_bytes * ROWS as usize]);
    // Where the next call goes on, in the kernel's own terms: four bytes for a hash map.
    let mut place = 0u32;
    let mut total = 0u64;
    let mut is_first = true;
    loop {
        let mut batch = Batch {
            in_batch: if is_first { 0 } else { (&raw const place) as u64 },
            out_batch: (&raw mut place) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: ROWS,
            map_fd: map.as_raw_fd().cast_unsigned(),
            elem_flags: 0,
            flags: 0,
        };
        let length = size_of::<Batch>();
        // SAFETY: the kernel reads `length` bytes of the request and writes its count, four bytes at `place`, and at most
        // `ROWS` keys and values of the sizes that the caller says the map has; all outlive the call.
        let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut batch, length) };
        let error = (result < 0).then(io::Error::last_os_error);
        match error {
            None => total += u64::from(batch.count),
            // The end; what came with it counts.
            Some(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                return Ok(total + u64::from(batch.count));
            }
            Some(error) => return Err(error),
        }
        if total > most {
            return Ok(total);
        }
        is_first = false;
    }
}

/// Opens the link that is pinned at this path.
///
/// # Errors
/// The system's; NotFound if nothing is pinned there.
pub fn open_link(pin: &Path) -> io::Result<OwnedFd> {
    const BPF_OBJ_GET: libc::c_long = 7;
    /// The members of `union bpf_attr` for this command.
    #[repr(C)]
    struct Get {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let get = Get { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: the kernel reads the request and the path that it points to, which ends with a zero; both outlive the call.
    let raw = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const get, size_of::<Get>()) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    let raw = RawFd::try_from(raw).map_err(io::Error::other)?;
    // SAFETY: the kernel just opened it, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Takes the link's program off its hook before this returns, whoever holds the link (kernel/bpf/syscall.c, `link_detach`).
///
/// # Errors
/// The system's; EINVAL for what is no link, EOPNOTSUPP for a link that ends with its last holder only.
pub fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    const BPF_LINK_DETACH: libc::c_long = 34;
    let request = link.as_raw_fd();
    // SAFETY: the kernel reads the descriptor's four bytes, which outlive the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_DETACH, &raw const request, size_of::<RawFd>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Bytes of randomness from the kernel (getrandom(2)), at most 256, which it never cuts short.
///
/// # Errors
/// The system's, if the kernel has no randomness to give.
pub fn random_bytes<const LENGTH: usize>() -> io::Result<[u8; LENGTH]> {
    const { assert!(LENGTH <= 256, "the kernel may give fewer") };
    let mut bytes = [0; LENGTH];
    // SAFETY: the kernel writes at most `LENGTH` bytes to the array, which is that long.
    let written = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), LENGTH, 0) };
    if usize::try_from(written) == Ok(LENGTH) { Ok(bytes) } else { Err(io::Error::last_os_error()) }
}

/// Two words of it.
///
/// # Errors
/// As [`random_bytes`].
pub fn random_words() -> io::Result<[u64; 2]> {
    let bytes = random_bytes::<8>()?;
    Ok([u64::from_ne_bytes(bytes), u64::from_ne_bytes(random_bytes()?)])
}

/// What an interface does to packets before a program sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads {
    /// Joins segments of one connection.
    pub large_receive: bool,
    /// Takes off the tag of an 802.1Q VLAN.
    pub vlan_tags: bool,
}

/// The offloads of `interface`, or `None` where it does not answer (`ETHTOOL_GFLAGS`, include/uapi/linux/ethtool.h).
///
/// # Errors
/// The system's, if not even a socket can be had.
pub fn offloads(interface: &str) -> io::Result<Option<Offloads>> {
    const ETHTOOL_GFLAGS: u32 = 0x25;
    const ETH_FLAG_RXVLAN: u32 = 1 << 8;
    const ETH_FLAG_LRO: u32 = 1 << 15;
    let mut value = [ETHTOOL_GFLAGS, 0];
    // SAFETY: `ETHTOOL_GFLAGS` reads and writes a `struct ethtool_value`, two words.
    let answered = unsafe { ethtool(interface, (&raw mut value).cast()) }?;
    let [_, flags] = value;
    Ok(answered.then_some(Offloads {
        large_receive: flags & ETH_FLAG_LRO != 0,
        vlan_tags: flags & ETH_FLAG_RXVLAN != 0,
    }))
}

/// How many channels of `interface` receive, or `None` where its driver does not answer (`ETHTOOL_GCHANNELS`).
///
/// # Errors
/// The system's, if not even a socket can be had.
pub fn receive_channels(interface: &str) -> io::Result<Option<u32>> {
    const ETHTOOL_GCHANNELS: u32 = 0x3c;
    // `struct ethtool_channels`: the command, four maxima, then receiving, sending, other and combined channels.
    let mut channels = [ETHTOOL_GCHANNELS, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: `ETHTOOL_GCHANNELS` reads and writes a `struct ethtool_channels`, nine words.
    let answered = unsafe { ethtool(interface, (&raw mut channels).cast()) }?;
    let [_, _, _, _, _, receiving, _, _, combined] = channels;
    Ok(answered.then_some(receiving.saturating_add(combined)))
}

/// Name of the driver of `interface`, or `None` where it does not answer (`ETHTOOL_GDRVINFO`).
///
/// # Errors
/// The system's, if not even a socket can be had.
pub fn driver(interface: &str) -> io::Result<Option<String>> {
    const ETHTOOL_GDRVINFO: u32 = 3;
    /// `struct ethtool_drvinfo` is 196 bytes: a command word, then 32 bytes of driver name.
    #[repr(C)]
    struct Info {
        command: u32,
        driver: [u8; 32],
        rest: [u8; 160],
    }
    let mut info = Info { command: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
    // SAFETY: `ETHTOOL_GDRVINFO` reads and writes a `struct ethtool_drvinfo`, which `Info` is as long as.
    let answered = unsafe { ethtool(interface, (&raw mut info).cast()) }?;
    let name = info.driver.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(answered.then(|| String::from_utf8_lossy(name).into_owned()))
}

/// Asks the driver of `interface`; false if it does not answer.
///
/// # Safety
/// `data` must point to the struct that its first word, the command, reads and writes.
unsafe fn ethtool(interface: &str, data: *mut libc::c_char) -> io::Result<bool> {
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Ok(false);
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = data;
    // SAFETY: the kernel reads the name, which ends with a zero, and what `data` points to, by the caller's promise.
    Ok(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) } == 0)
}

/// The number that the kernel gave this thread's network namespace (`SO_NETNS_COOKIE`, Linux 5.14).
///
/// # Errors
/// The system's.
pub fn netns_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which `cookie` has, and sets `length`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}
