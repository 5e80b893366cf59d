//! The only program of a virtual machine: loads and tries the shield in whatever kernel was booted.
//!
//! `cargo xtask test-vm` links it statically, boots it as `/init`, and reads what it says on the console: lines that begin
//! with `tunica-vm:`, then a word for what is told, then the rest. What the host expects of a kernel is not known here.
//! The machine goes off when the program ends, so it starts nowhere else.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the console is how it reports")]

use std::{
    env,
    fmt::Display,
    fs,
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::{self, Command, ExitCode},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
    net::if_::if_nametoindex,
    sys::{
        reboot::{RebootMode, reboot},
        resource::{RLIM_INFINITY, Resource, setrlimit},
        termios::tcdrain,
        utsname::uname,
    },
    unistd::write,
};
use tunica_common::verdict::{Action, Verdict};
use tunica_core::limits::Mode as Strictness;
use tunica_tests::{
    gate::{Service, desired, end_of, line},
    rows::rows,
    shield::Shield,
    sys::{bound_capabilities, packet_socket},
    veth,
};
use tunicad::shell::{
    gate::{Gate, Repairs},
    xdp::{
        attach::{self, Wanted},
        handshakes,
        hook::{self, Mode},
        object,
        pins::Pins,
    },
};

/// CAP_NET_ADMIN, CAP_PERFMON and CAP_BPF (include/uapi/linux/capability.h): what the daemon's unit grants.
const CAPABILITIES: &[u32] = &[12, 38, 39];

/// The interface with the shield, and the other end of its wire.
const SHIELDED: &str = "shielded";
const OUTSIDE: &str = "outside";

/// Where the shield's link is pinned.
const PINS: &str = "/sys/fs/bpf/tunica";

/// Frames of each kind sent over the wire: fewer than a veth's ring holds.
const FRAMES: u64 = 32;

/// How long the kernel may take to count them.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    match (env::args().nth(1).as_deref(), process::id()) {
        (Some("machine"), 1) => {
            report(machine());
            say("end", "");
            let off = power_off();
            // Not reached: the kernel panics if its first process ends.
            say("error", format!("cannot power off: {off:?}"));
            ExitCode::FAILURE
        }
        (Some("shield"), _) if nix::unistd::getppid().as_raw() == 1 && Path::new("/modules").is_dir() => {
            report(shield())
        }
        _ => {
            eprintln!("this is the first program of a virtual machine; `cargo xtask test-vm` boots one");
            ExitCode::FAILURE
        }
    }
}

/// Tells the host.
fn say(what: &str, rest: impl Display) {
    // One line each: the host reads line by line.
    println!("tunica-vm: {what} {}", rest.to_string().replace('\n', " / "));
}

fn report(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say("error", format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn power_off() -> Result<()> {
    io::stdout().flush()?;
    // The last words must be out of the serial port before the power goes.
    tcdrain(io::stdout())?;
    reboot(RebootMode::RB_POWER_OFF)?;
    Ok(())
}

/// Makes the machine ready and starts the shield's process with the capabilities of the daemon's unit.
fn machine() -> Result<()> {
    for (kind, place, options) in [
        ("proc", "/proc", ""),
        ("sysfs", "/sys", ""),
        ("bpf", "/sys/fs/bpf", "mode=0700"),
        ("cgroup2", "/sys/fs/cgroup", ""),
    ] {
        mount(Some(kind), place, Some(kind), MsFlags::empty(), Some(options))
            .with_context(|| format!("mounting {place}"))?;
    }
    fs::create_dir(PINS).with_context(|| format!("making {PINS}"))?;
    say("release", uname()?.release().display());
    let mut modules = fs::read_dir("/modules")?.collect::<io::Result<Vec<_>>>()?;
    // Their names begin with a number: what others depend on comes first.
    modules.sort_by_key(fs::DirEntry::file_name);
    for module in modules {
        let path = module.path();
        let file = fs::File::open(&path)?;
        finit_module(file, c"", ModuleInitFlags::empty())
            .with_context(|| format!("inserting {}", path.display()))?;
    }
    // Router solicitations and the like would be counted among the frames sent.
    // The rows need listeners below 1024, which takes a capability that the unit lacks.
    let unprivileged = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    fs::write(unprivileged, "0").with_context(|| format!("writing {unprivileged}"))?;
    let ipv6 = Path::new("/proc/sys/net/ipv6/conf/default/disable_ipv6");
    if ipv6.exists() {
        fs::write(ipv6, "1").context("switching IPv6 off")?;
    }
    veth::create(SHIELDED, OUTSIDE).context("making a veth pair")?;
    veth::set_up("lo").context("setting lo up")?;
    let socket = packet_socket(if_nametoindex(OUTSIDE)?).context("opening a packet socket")?;
    // Linux before 5.11 counts maps as locked memory. How much of that a process may have is a setting, and not what is
    // asked here.
    setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).context("lifting RLIMIT_MEMLOCK")?;
    // The socket goes with the process as its standard input: to open one takes a capability that the unit lacks.
    let mut command = Command::new("/init");
    bound_capabilities(command.arg("shield").stdin(socket), CAPABILITIES);
    let status = command.status().context("starting the shield's process")?;
    ensure!(status.success(), "the shield's process ended with {status}");
    Ok(())
}

/// Loads the shield, runs the rows, attaches and sends frames.
fn shield() -> Result<()> {
    check_capabilities()?;
    let mut shield = match Shield::load_here() {
        Ok(shield) => shield,
        Err(error) => {
            // Whether this kernel should have refused is for the host to say.
            say("refused", error);
            return Ok(());
        }
    };
    let info = object::program(shield.ebpf())?.info().context("asking for the program's properties")?;
    if let Some(instructions) = info.verified_instruction_count() {
        say("instructions", instructions);
    }
    let rows = rows();
    let mut passed = 0;
    for row in &rows {
        match shield.fault(row) {
            Ok(None) => passed += 1,
            Ok(Some(fault)) => say("fault", fault),
            Err(error) => say("fault", format!("{}: {error:#}", row.name)),
        }
    }
    say("rows", format!("{passed} of {}", rows.len()));
    attach(&mut shield)?;
    for expect in [(Verdict::SynFin, Action::Drop), (Verdict::Arp, Action::Pass)] {
        send(&mut shield, expect)?;
    }
    handshakes::attach(shield.ebpf()).context("counting handshakes")?;
    say("handshakes", "attached");
    gate().context("the circuit gate")
}

/// Attaches the circuit gate to `lo`, replaces it, and has it refuse a circuit and pass another.
fn gate() -> Result<()> {
    const BANNED: u32 = 0x0001_0029;
    let service = Service::open(IpAddr::V4(Ipv4Addr::LOCALHOST), true)?;
    let pins = Arc::new(Pins::claim(Path::new(PINS))?);
    let wanted = desired(Strictness::Enforce, 1, &[BANNED])?;
    let refuses = || -> Result<()> {
        let end = end_of(&mut service.visit(line(BANNED).as_bytes())?)?;
        ensure!(end == io::ErrorKind::ConnectionReset, "the client saw {end}");
        ensure!(service.left_over()?.is_empty(), "left over: {:?}", service.left_over()?);
        ensure!(!service.is_woken(100)? && service.has_none(), "the listener woke");
        Ok(())
    };
    let passes = |circuit: u32| -> Result<()> {
        let _client = service.visit(line(circuit).as_bytes())?;
        service.accept().map(|_| ())
    };
    Gate::open(&pins, &[service.port()?])?.follow(&wanted)?;
    refuses().context("after the first gate was dropped")?;
    let mut gate = Gate::open(&pins, &[service.port()?])?;
    refuses().context("by the second gate")?;
    passes(BANNED - 1)?;
    let repairs = gate.audit(&wanted)?;
    ensure!(repairs == Repairs::default(), "the second gate is not whole: {repairs:?}");
    let label = gate.attachment().label();
    let instructions = gate.program()?.info()?.verified_instruction_count().unwrap_or(0);
    gate.detach()?;
    passes(BANNED).context("after it was detached")?;
    say("gate", format!("{label}, {instructions} instructions"));
    Ok(())
}

fn check_capabilities() -> Result<()> {
    let status = fs::read_to_string("/proc/self/status").context("reading this process's status")?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap_or_default().trim();
    let wanted = CAPABILITIES.iter().fold(0u64, |mask, number| mask | 1 << number);
    ensure!(
        u64::from_str_radix(effective, 16) == Ok(wanted),
        "the shield's process has the capabilities {effective}, not {wanted:016x}"
    );
    say("capabilities", effective);
    Ok(())
}

fn attach(shield: &mut Shield) -> Result<()> {
    let directory = PathBuf::from(PINS).join("links");
    fs::create_dir(&directory).with_context(|| format!("making {}", directory.display()))?;
    // The link is pinned, so it stays when this is dropped.
    attach::attach(shield.ebpf(), Path::new(PINS), &directory, SHIELDED, Wanted::Native)?;
    let hook = hook::read(SHIELDED)?.context("the shielded interface is gone")?;
    ensure!(hook.mode == Mode::Native, "attached to a veth in mode {}", hook.mode.label());
    say("attached", hook.mode.label());
    Ok(())
}

/// Sends a row's frame over the wire and waits until it is counted as often as it was sent.
fn send(shield: &mut Shield, expect: (Verdict, Action)) -> Result<()> {
    let Some(row) = rows().into_iter().find(|row| row.expect == expect && row.before == 0) else {
        bail!("no row ends as {expect:?}");
    };
    let (verdict, action) = expect;
    shield.set(&row.world)?;
    let before = shield.packets(verdict, action)?;
    for _ in 0..FRAMES {
        let sent = write(io::stdin(), &row.frame).with_context(|| format!("sending `{}`", row.name))?;
        ensure!(sent == row.frame.len(), "only {sent} bytes of `{}` were sent", row.name);
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let counted = shield.packets(verdict, action)? - before;
        if counted >= FRAMES {
            say("counted", format!("{} {} {counted} of {FRAMES}", verdict.label(), action.label()));
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{FRAMES} times `{}` went over the wire, but {counted} were counted", row.name);
        }
        thread::sleep(Duration::from_millis(10));
    }
}
