//! Kernel programs from bare instructions (bpf(2)), and loading with fewer capabilities (capset(2)).

use std::{
    io, mem,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use aya_obj::generated::{
    BPF_F_TEST_XDP_LIVE_FRAMES, BPF_F_XDP_HAS_FRAGS, bpf_attach_type, bpf_attr, bpf_cmd, bpf_map_type,
    bpf_prog_type,
};

/// Does `act` with none but these capabilities in effect on this thread, of those that it may have. They are given by
/// number (include/uapi/linux/capability.h).
///
/// # Errors
/// When capabilities cannot be read or set.
pub fn with_capabilities<T>(wanted: &[u32], act: impl FnOnce() -> T) -> io::Result<T> {
    let before = capabilities()?;
    let mask = wanted.iter().fold(0u64, |mask, number| mask | 1 << number);
    let [low, high] = before;
    set_capabilities([
        Capabilities { effective: low.permitted & mask as u32, ..low },
        Capabilities { effective: high.permitted & (mask >> 32) as u32, ..high },
    ])?;
    let done = act();
    set_capabilities(before)?;
    Ok(done)
}

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct`; there are two, for the lower and the upper 32 capabilities.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Capabilities {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`; pid 0 is the calling thread.
const THIS_THREAD: CapabilityHeader = CapabilityHeader { version: 0x2008_0522, pid: 0 };

fn capabilities() -> io::Result<[Capabilities; 2]> {
    let mut header = THIS_THREAD;
    let mut data = [Capabilities::default(); 2];
    // SAFETY: version 3 reads one header and writes two structures of data; both outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(data) }
}

fn set_capabilities(data: [Capabilities; 2]) -> io::Result<()> {
    let mut header = THIS_THREAD;
    // SAFETY: version 3 reads one header and two structures of data; both outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Loads an XDP program from bare instructions. With `frags` it takes packets of many buffers.
///
/// # Errors
/// The verifier's words if it refuses the program.
pub fn load_xdp(code: &[u64], frags: bool) -> io::Result<OwnedFd> {
    let license = c"Dual MIT/GPL";
    let mut log = vec![0u8; 1 << 16];
    let mut request = no_request();
    // SAFETY: BPF_PROG_LOAD reads this member, which is all zeroes until now.
    let load = unsafe { &mut request.__bindgen_anon_3 };
    load.prog_type = bpf_prog_type::BPF_PROG_TYPE_XDP as u32;
    load.expected_attach_type = bpf_attach_type::BPF_XDP as u32;
    load.prog_flags = if frags { BPF_F_XDP_HAS_FRAGS } else { 0 };
    load.insns = code.as_ptr() as u64;
    load.insn_cnt = u32::try_from(code.len()).map_err(io::Error::other)?;
    load.license = license.as_ptr() as u64;
    load.log_buf = log.as_mut_ptr() as u64;
    load.log_size = u32::try_from(log.len()).map_err(io::Error::other)?;
    load.log_level = 1;
    // SAFETY: instructions, licence and log outlive the call and are as long as the request says.
    let loaded = unsafe { call_for_descriptor(bpf_cmd::BPF_PROG_LOAD, &mut request) };
    loaded.map_err(|error| {
        let words = log.split(|byte| *byte == 0).next().unwrap_or_default();
        io::Error::other(format!("{error}\n{}", String::from_utf8_lossy(words)))
    })
}

/// A program array of one entry.
///
/// # Errors
/// The system call's.
pub fn program_array() -> io::Result<OwnedFd> {
    let mut request = no_request();
    // SAFETY: BPF_MAP_CREATE reads this member, which is all zeroes until now.
    let create = unsafe { &mut request.__bindgen_anon_1 };
    create.map_type = bpf_map_type::BPF_MAP_TYPE_PROG_ARRAY as u32;
    (create.key_size, create.value_size, create.max_entries) = (4, 4, 1);
    // SAFETY: the request holds no pointer.
    unsafe { call_for_descriptor(bpf_cmd::BPF_MAP_CREATE, &mut request) }
}

/// Puts a program into the one entry of a program array.
///
/// # Errors
/// The system call's; EINVAL if program and array do not go together.
pub fn set_program(array: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let (key, value) = (0u32, program.as_raw_fd());
    let mut request = no_request();
    // SAFETY: BPF_MAP_UPDATE_ELEM reads this member, which is all zeroes until now.
    let update = unsafe { &mut request.__bindgen_anon_2 };
    update.map_fd = array.as_raw_fd().cast_unsigned();
    update.key = (&raw const key) as u64;
    update.__bindgen_anon_1.value = (&raw const value) as u64;
    // SAFETY: key and value are four bytes each, as in `program_array`, and outlive the call.
    unsafe { call(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut request) }.map(|_| ())
}

/// An array of one number of 64 bits, which is 0.
///
/// # Errors
/// The system call's.
pub fn counter() -> io::Result<OwnedFd> {
    let mut request = no_request();
    // SAFETY: BPF_MAP_CREATE reads this member, which is all zeroes until now.
    let create = unsafe { &mut request.__bindgen_anon_1 };
    create.map_type = bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
    (create.key_size, create.value_size, create.max_entries) = (4, 8, 1);
    // SAFETY: the request holds no pointer.
    unsafe { call_for_descriptor(bpf_cmd::BPF_MAP_CREATE, &mut request) }
}

/// The number in an array of one.
///
/// # Errors
/// The system call's.
pub fn count(counter: BorrowedFd<'_>) -> io::Result<u64> {
    let (key, mut value) = (0u32, 0u64);
    let mut request = no_request();
    // SAFETY: BPF_MAP_LOOKUP_ELEM reads this member, which is all zeroes until now.
    let look_up = unsafe { &mut request.__bindgen_anon_2 };
    look_up.map_fd = counter.as_raw_fd().cast_unsigned();
    look_up.key = (&raw const key) as u64;
    look_up.__bindgen_anon_1.value = (&raw mut value) as u64;
    // SAFETY: the key has four bytes and the value eight, as in `counter`, and both outlive the call.
    unsafe { call(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut request) }?;
    Ok(value)
}

/// The loaded program with this identity.
///
/// # Errors
/// The system call's; it needs CAP_SYS_ADMIN.
pub fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut request = no_request();
    request.__bindgen_anon_6.__bindgen_anon_1.prog_id = id;
    // SAFETY: the request holds no pointer.
    unsafe { call_for_descriptor(bpf_cmd::BPF_PROG_GET_FD_BY_ID, &mut request) }
}

/// Attaches an XDP program to the driver of an interface of this thread's namespace, for as long as the result lives.
///
/// # Errors
/// The system call's.
pub fn attach_xdp(program: BorrowedFd<'_>, interface: u32) -> io::Result<OwnedFd> {
    /// `XDP_FLAGS_DRV_MODE` (include/uapi/linux/if_link.h).
    const IN_THE_DRIVER: u32 = 1 << 2;
    let mut request = no_request();
    // SAFETY: BPF_LINK_CREATE reads this member, which is all zeroes until now.
    let create = unsafe { &mut request.link_create };
    create.__bindgen_anon_1.prog_fd = program.as_raw_fd().cast_unsigned();
    create.__bindgen_anon_2.target_ifindex = interface;
    create.attach_type = bpf_attach_type::BPF_XDP as u32;
    create.flags = IN_THE_DRIVER;
    // SAFETY: the request holds no pointer.
    unsafe { call_for_descriptor(bpf_cmd::BPF_LINK_CREATE, &mut request) }
}

/// Runs an XDP program `repeat` times on a frame (`BPF_PROG_TEST_RUN`) and returns what the last run returned. The frame
/// is not renewed between the runs.
///
/// # Errors
/// The system call's.
pub fn run_xdp(program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> io::Result<u32> {
    test_run(program, frame, repeat, 0)
}

/// Runs an XDP program on `count` live frames: what it redirects or passes, the kernel really sends or receives.
///
/// # Errors
/// The system call's.
pub fn send_live_frames(program: BorrowedFd<'_>, frame: &[u8], count: u32) -> io::Result<()> {
    test_run(program, frame, count, BPF_F_TEST_XDP_LIVE_FRAMES).map(|_| ())
}

fn test_run(program: BorrowedFd<'_>, frame: &[u8], repeat: u32, flags: u32) -> io::Result<u32> {
    let mut request = no_request();
    // SAFETY: BPF_PROG_TEST_RUN reads and writes this member, which is all zeroes until now.
    let test = unsafe { &mut request.test };
    test.prog_fd = program.as_raw_fd().cast_unsigned();
    test.data_in = frame.as_ptr() as u64;
    test.data_size_in = u32::try_from(frame.len()).map_err(io::Error::other)?;
    test.repeat = repeat;
    test.flags = flags;
    // SAFETY: the kernel reads the frame, which outlives the call and is as long as the request says, and writes
    // nothing but the request, since it is given no room for the frame's end.
    unsafe { call(bpf_cmd::BPF_PROG_TEST_RUN, &mut request) }?;
    // SAFETY: four bytes of the member that the kernel wrote.
    Ok(unsafe { request.test.retval })
}

fn no_request() -> bpf_attr {
    // SAFETY: all members consist of integers, for which all zeroes are valid.
    unsafe { mem::zeroed() }
}

/// # Safety
/// As [`call`]; and `command` must return a new descriptor.
unsafe fn call_for_descriptor(command: bpf_cmd, request: &mut bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: promised by the caller.
    let raw = unsafe { call(command, request) }?;
    // SAFETY: the descriptor is new, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// # Safety
/// The addresses in the member of `request` that `command` reads must be valid for what it does with them.
unsafe fn call(command: bpf_cmd, request: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: the request is as long as said; the rest is the caller's promise.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command as u32, &raw mut *request, size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { i32::try_from(result).map_err(io::Error::other) }
}
