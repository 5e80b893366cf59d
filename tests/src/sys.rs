//! System calls that no safe crate offers: packet sockets, batches of frames, a child that ends with its parent or has few
//! capabilities, signals to a process that cannot be mistaken, a thread that is held, what is done when this process ends.
//!
//! With [`bpf`], the only files of this package with `unsafe`.

use std::{
    io,
    marker::PhantomData,
    mem,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::Command,
};

use nix::sys::{
    prctl,
    resource::{Resource, getrlimit, setrlimit},
    signal::{SigSet, Signal},
};

pub mod bpf;

/// Frames that one call of [`send_frames`] takes.
pub const BATCH: usize = 64;

/// Lets this process open as many files as the administrator allows at most, and says how many.
///
/// # Errors
/// The failed system call's.
pub fn allow_files() -> io::Result<u64> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    Ok(most)
}

/// A packet socket (packet(7)) that sends whole frames out of the interface with this index, past its queueing
/// discipline. It receives nothing.
///
/// # Errors
/// The failed system call's; without CAP_NET_RAW in the interface's namespace that is EPERM.
pub fn packet_socket(interface: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointer is passed. Protocol 0 makes a socket that only sends.
    let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `raw` was just opened and nothing else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    let bypass: libc::c_int = 1;
    // SAFETY: the pointer and the length describe `bypass`, which outlives the call.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_QDISC_BYPASS,
            (&raw const bypass).cast(),
            length_of::<libc::c_int>(),
        )
    })?;
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?,
        sll_protocol: 0,
        sll_ifindex: i32::try_from(interface).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the pointer and the length describe `address`, a whole `sockaddr_ll` that outlives the call.
    check(unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length_of::<libc::sockaddr_ll>())
    })?;
    Ok(socket)
}

/// Sends up to [`BATCH`] frames with one system call and returns how many the kernel took.
///
/// # Errors
/// The system call's, if not even the first frame was taken; ENOBUFS means that the interface's ring is full.
pub fn send_frames(socket: BorrowedFd<'_>, frames: &[impl AsRef<[u8]>]) -> io::Result<usize> {
    let mut pieces: Vec<libc::iovec> = frames
        .iter()
        .take(BATCH)
        .map(|frame| {
            let bytes = frame.as_ref();
            libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
        })
        .collect();
    let mut messages: Vec<libc::mmsghdr> = pieces
        .iter_mut()
        .map(|piece| {
            // SAFETY: `mmsghdr` consists of integers and pointers, for which all zeroes are valid.
            let mut message: libc::mmsghdr = unsafe { mem::zeroed() };
            message.msg_hdr.msg_iov = piece;
            message.msg_hdr.msg_iovlen = 1;
            message
        })
        .collect();
    let count = libc::c_uint::try_from(messages.len()).map_err(io::Error::other)?;
    // SAFETY: `messages` has `count` entries. Each points to its entry of `pieces`, which points to a frame
    // and says its length; the kernel only reads it, and all three outlive the call.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count, 0) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Lets a listener hear of a connection only once it carries data, or after `seconds` (TCP_DEFER_ACCEPT, tcp(7)).
///
/// # Errors
/// The system call's.
pub fn defer_accept(listener: BorrowedFd<'_>, seconds: i32) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `seconds`, which outlives the call.
    check(unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw const seconds).cast(),
            length_of::<libc::c_int>(),
        )
    })
}

/// Whether the kernel calls the wall clock synchronised, and by how many seconds it may be wrong (adjtimex(2)).
///
/// # Errors
/// The system call's.
pub fn clock() -> io::Result<(bool, f64)> {
    // SAFETY: `timex` consists of integers, for which zero is valid; `modes` 0 asks for nothing to be changed.
    let mut answer: libc::timex = unsafe { mem::zeroed() };
    // SAFETY: the pointer describes `answer`, which outlives the call.
    check(unsafe { libc::adjtimex(&raw mut answer) })?;
    let microseconds = i32::try_from(answer.maxerror).map_err(io::Error::other)?;
    Ok((answer.status & libc::STA_UNSYNC == 0, f64::from(microseconds) / 1e6))
}

/// Lets the kernel end the child when the thread that starts it ends, however that happens. The child blocks no signal,
/// whatever this thread blocks, since it would inherit that.
pub fn end_with_parent(command: &mut Command) -> &mut Command {
    let unblocked = SigSet::empty();
    let prepare = move || {
        unblocked.thread_set_mask()?;
        prctl::set_pdeathsig(Signal::SIGTERM)?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes two system calls, which are async-signal-safe; it allocates
    // nothing and takes no lock.
    unsafe { command.pre_exec(prepare) }
}

/// Leaves the child no capability but these, given by number (include/uapi/linux/capability.h), as
/// `CapabilityBoundingSet=` and `NoNewPrivileges=` of a unit do: the others leave its bounding set, and with that what
/// root gains by execve(2).
pub fn bound_capabilities<'a>(command: &'a mut Command, wanted: &'static [u32]) -> &'a mut Command {
    let prepare = move || {
        // Capabilities are bits of a 64-bit mask.
        for number in (0..64u32).filter(|number| !wanted.contains(number)) {
            // SAFETY: this operation takes a number and no pointer.
            let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) };
            match check(result) {
                // The first number that this kernel has no capability for.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
                result => result?,
            }
        }
        prctl::set_no_new_privs()?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls, which are async-signal-safe; it allocates nothing and
    // takes no lock.
    unsafe { command.pre_exec(prepare) }
}

/// A file descriptor of a process (pidfd_open(2)): it means this process also after its pid went to another one.
///
/// # Errors
/// The system call's; ESRCH if there is no such process.
pub fn open_process(pid: u32) -> io::Result<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: this system call takes two numbers and no pointer.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let raw = libc::c_int::try_from(raw).map_err(io::Error::other)?;
    check(raw)?;
    // SAFETY: `raw` was just opened and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Sends a signal to a process by its file descriptor (pidfd_send_signal(2)).
///
/// # Errors
/// The system call's; ESRCH if the process has ended.
pub fn signal_process(process: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    let information: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: the kernel takes a null pointer as "fill it as kill(2) does"; the rest are numbers.
    let result = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal as libc::c_int, information, 0)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A thread of another process that is held in the middle of what it does. It goes on when this is dropped, on the same thread: the
/// kernel lets it go for whoever holds it alone.
#[derive(Debug)]
pub struct HeldThread(libc::pid_t, PhantomData<*const ()>);

/// Holds one thread of another process, by its number, while the others go on (ptrace(2)).
///
/// # Errors
/// The system call's; EPERM if somebody else traces it.
pub fn hold_thread(thread: i32) -> io::Result<HeldThread> {
    trace(libc::PTRACE_SEIZE, thread)?;
    // From here on it is let go in any case.
    let held = HeldThread(thread, PhantomData);
    trace(libc::PTRACE_INTERRUPT, thread)?;
    // SAFETY: the kernel takes a null pointer as no wish for a status.
    check(unsafe { libc::waitpid(thread, std::ptr::null_mut(), libc::__WALL) })?;
    Ok(held)
}

impl Drop for HeldThread {
    fn drop(&mut self) {
        // Its process may have been killed.
        let _ = trace(libc::PTRACE_DETACH, self.0);
    }
}

/// A request of ptrace(2) that has neither address nor data.
fn trace(request: libc::c_uint, thread: libc::pid_t) -> io::Result<()> {
    let nothing: *mut libc::c_void = std::ptr::null_mut();
    // SAFETY: none of the three requests above reads or writes memory of this process.
    let result = unsafe { libc::ptrace(request, thread, nothing, nothing) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Bytes of the heap in use, with those that the allocator took from the kernel for one object alone (mallinfo(3)).
pub fn allocated_bytes() -> usize {
    // SAFETY: the function takes nothing and returns a structure of integers.
    let heap = unsafe { libc::mallinfo2() };
    heap.uordblks + heap.hblkhd
}

/// Calls `act` when this process ends by `exit` or by returning from `main`, not when a signal ends it.
///
/// # Errors
/// If the C library has no memory for it.
pub fn at_exit(act: extern "C" fn()) -> io::Result<()> {
    // SAFETY: `act` is a function without captures, which is valid as long as the program.
    let result = unsafe { libc::atexit(act) };
    if result == 0 { Ok(()) } else { Err(io::Error::other("the C library refuses another exit handler")) }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn length_of<T>() -> libc::socklen_t {
    // No structure here is longer than 20 bytes.
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}
