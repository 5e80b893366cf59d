//! The programs that are compared as ingress, set to the same work: a PROXY line in, limits by circuit that never act, the
//! circuit told to the service, connections to the service kept.

use std::{
    env, fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use tempfile::TempDir;
use tunica_tests::{
    counters::TICK,
    ingress::{Backend, Front, free_address},
    sys::end_with_parent,
};

use crate::load::Protocol;

/// How long a program may take until it listens.
const PATIENCE: Duration = Duration::from_secs(10);

/// How the names of the front's threads begin that take connections.
const WORKER: &str = "worker";

/// HAProxy's control socket in its folder.
const CONTROL: &str = "control";

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Program {
    Front,
    Haproxy,
    Nginx,
}

impl Program {
    pub(crate) const ALL: [Self; 3] = [Self::Front, Self::Haproxy, Self::Nginx];

    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Front => "tunica-front",
            Self::Haproxy => "HAProxy",
            Self::Nginx => "nginx",
        }
    }
}

/// Two processors: one for the program that is measured, one for everybody else.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Processors {
    proxy: usize,
    rest: usize,
}

impl Processors {
    /// The first two that this process may use.
    ///
    /// # Errors
    /// When there is only one.
    pub(crate) fn choose() -> Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0)).context("asking for processors")?;
        let mut numbers = (0..CpuSet::count()).filter(|number| allowed.is_set(*number).unwrap_or(false));
        match (numbers.next(), numbers.next()) {
            (Some(rest), Some(proxy)) => Ok(Self { proxy, rest }),
            _ => bail!(
                "the ingress needs a processor and its visitors another: this machine, or this process's affinity, has one"
            ),
        }
    }

    /// Keeps this thread, and what it starts, beside the program that is measured.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn stay_beside(self) -> Result<()> {
        pin(self.rest)
    }

    /// Does `act`, which starts the program, where that is to stay. Programs count the processors that they may use, so
    /// they take one worker.
    ///
    /// # Errors
    /// The kernel's, and those of `act`.
    pub(crate) fn start<T>(self, act: impl FnOnce() -> Result<T>) -> Result<T> {
        pin(self.proxy)?;
        let started = act();
        self.stay_beside()?;
        started
    }
}

fn pin(processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor)?;
    sched_setaffinity(Pid::from_raw(0), &set).context("choosing a processor")
}

/// A program that carries one protocol.
pub(crate) struct Proxy {
    /// Where visitors come.
    pub(crate) listen: SocketAddr,
    process: Process,
}

enum Process {
    Front(Box<Front>),
    Other { child: Child, folder: TempDir },
}

impl Proxy {
    /// Starts one before this service.
    ///
    /// # Errors
    /// When it is missing or does not listen.
    pub(crate) fn start(
        program: Program,
        protocol: Protocol,
        service: SocketAddr,
        processors: Processors,
    ) -> Result<Self> {
        match program {
            Program::Front => {
                // Nobody asks this one: the harness has it, the service is another.
                let idle = Backend::start()?;
                let (ingress, circuits) = front_settings(protocol);
                let front = processors
                    .start(|| Front::start_telling("warn", &[service], idle, &ingress, &circuits))?;
                Ok(Self { listen: front.listen(), process: Process::Front(Box::new(front)) })
            }
            Program::Haproxy | Program::Nginx => {
                let folder = TempDir::with_prefix("tunica-bench-")?;
                let listen = free_address()?;
                let (text, name) = match program {
                    Program::Nginx => (nginx_settings(protocol, listen, service, folder.path())?, "nginx"),
                    Program::Front | Program::Haproxy => {
                        (haproxy_settings(protocol, listen, service, folder.path()), "haproxy")
                    }
                };
                let settings = folder.path().join("settings");
                fs::write(&settings, text).context("writing settings")?;
                let log = folder.path().join("log");
                let mut command = Command::new(find(name)?);
                match program {
                    Program::Nginx => {
                        command.arg("-p").arg(folder.path()).arg("-e").arg(&log).arg("-c").arg(&settings)
                    }
                    Program::Front | Program::Haproxy => command.arg("-db").arg("-f").arg(&settings),
                };
                let output = fs::File::options().create(true).append(true).open(&log)?;
                command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
                end_with_parent(&mut command);
                let child =
                    processors.start(|| command.spawn().with_context(|| format!("starting `{name}`")))?;
                let mut proxy = Self { listen, process: Process::Other { child, folder } };
                proxy.wait_until_it_listens(name, &log)?;
                Ok(proxy)
            }
        }
    }

    fn wait_until_it_listens(&mut self, name: &str, log: &Path) -> Result<()> {
        let begun = Instant::now();
        while TcpStream::connect(self.listen).is_err() {
            let has_ended = match &mut self.process {
                Process::Other { child, .. } => child.try_wait()?.is_some(),
                Process::Front(_) => false,
            };
            ensure!(
                !has_ended && begun.elapsed() < PATIENCE,
                "`{name}` does not listen: {}",
                fs::read_to_string(log).unwrap_or_default()
            );
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// The front, if it is one.
    pub(crate) fn front(&mut self) -> Option<&mut Front> {
        match &mut self.process {
            Process::Front(front) => Some(front),
            Process::Other { .. } => None,
        }
    }

    /// Its processes: the one that was started, and those that it started.
    fn family(&self) -> Result<Vec<u32>> {
        let first = match &self.process {
            Process::Front(front) => front.pid(),
            Process::Other { child, .. } => child.id(),
        };
        let mut family = vec![first];
        for entry in fs::read_dir("/proc").context("listing processes")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            // Who has ended is none of the family.
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if field(&stat, PARENT) == Some(first.into()) {
                family.push(pid);
            }
        }
        Ok(family)
    }

    /// Processor time that it has used, in its own code and in the kernel, all threads together.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) fn spent(&self) -> Result<Duration> {
        let mut ticks = 0;
        for pid in self.family()? {
            let path = format!("/proc/{pid}/stat");
            let stat = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
            let (user, system) = (field(&stat, USER_TIME), field(&stat, SYSTEM_TIME));
            ticks += user.zip(system).map(|(user, system)| user + system).context("no times of a process")?;
        }
        Ok(TICK * u32::try_from(ticks)?)
    }

    /// Bytes that it has in memory, those of its libraries included.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) fn resident(&self) -> Result<u64> {
        self.sum("status", |line| {
            let kib = line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?;
            Some(kib.trim().parse::<u64>().ok()? * 1_024)
        })
    }

    /// How often its threads that take connections have gone to sleep of themselves, and so were woken up again. Left out is
    /// the front's first thread, which checks the service and talks to the daemon, whoever comes.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) fn wakes(&self) -> Result<u64> {
        let mut sum = 0;
        for pid in self.family()? {
            for task in fs::read_dir(format!("/proc/{pid}/task")).context("listing threads")? {
                let text =
                    fs::read_to_string(task?.path().join("status")).context("reading a thread's state")?;
                let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
                let takes_connections = match &self.process {
                    Process::Front(_) => field("Name:").is_some_and(|name| name.starts_with(WORKER)),
                    Process::Other { .. } => true,
                };
                if takes_connections {
                    let switches = field("voluntary_ctxt_switches:").context("no switches of a thread")?;
                    sum += switches.parse::<u64>()?;
                }
            }
        }
        Ok(sum)
    }

    /// The socket of HAProxy's Runtime API.
    pub(crate) fn control(&self) -> Option<PathBuf> {
        match &self.process {
            Process::Front(_) => None,
            Process::Other { folder, .. } => Some(folder.path().join(CONTROL)),
        }
    }

    /// The sum of what `read` finds in a file of each process.
    fn sum(&self, file: &str, read: impl Fn(&str) -> Option<u64>) -> Result<u64> {
        let mut sum = 0;
        for pid in self.family()? {
            let path = format!("/proc/{pid}/{file}");
            let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
            sum += text.lines().find_map(&read).with_context(|| format!("{path} lacks a line"))?;
        }
        Ok(sum)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Process::Other { child, .. } = &mut self.process {
            // With a second process, as nginx has, the first must end it: not killed, but asked. It may have ended already.
            let asked = i32::try_from(child.id())
                .map(|pid| nix::sys::signal::kill(Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM));
            if !matches!(asked, Ok(Ok(()))) {
                let _ = child.kill();
            }
            let _ = child.wait();
        }
    }
}

/// Fields of `/proc/PID/stat`, as proc_pid_stat(5) counts them.
const PARENT: usize = 4;
const USER_TIME: usize = 14;
const SYSTEM_TIME: usize = 15;

/// A field from the third on: the second is a name in brackets, which may have blanks and brackets inside.
fn field(stat: &str, number: usize) -> Option<u64> {
    let behind_name = stat.rsplit_once(')')?.1;
    behind_name.split_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

/// Where a program or module is.
fn find(name: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .with_context(|| format!("`{name}` is missing: run `cargo xtask setup`"))
}

/// `[ingress]` and `[circuits]`, with limits out of reach.
fn front_settings(protocol: Protocol) -> (String, String) {
    let (word, profile, requests) = match protocol {
        Protocol::Http => (
            "http",
            "web",
            "slow_requests_per_10_seconds = 60000\nrequests_per_10_seconds = 60000\n\
             vip_requests_per_10_seconds = 60000\n",
        ),
        Protocol::Tcp => ("tcp", "messenger", ""),
    };
    let ingress = format!(
        "protocol = \"{word}\"\nmaxconn = 20000\nclient_seconds = 300\nkeep_alive_seconds = 300\n\
         health_every_seconds = 5\n"
    );
    let circuits = format!(
        "profile = \"{profile}\"\nmax_connections_per_second = 100000\nmax_concurrent_connections = 20000\n\
         max_per_circuit_per_minute = 0\nmax_concurrent_per_circuit = 60000\nconnections_per_10_seconds = 0\n{requests}\
         mebibytes_per_minute = 0\ncpu_milliseconds_per_minute = 0\n\
         table_size = 100000\n"
    );
    (ingress, circuits)
}

/// HAProxy's configuration; the control socket is for bans.
fn haproxy_settings(protocol: Protocol, listen: SocketAddr, service: SocketAddr, folder: &Path) -> String {
    let (mode, front, back) = match protocol {
        Protocol::Http => (
            "mode http\n http-reuse always\n timeout http-request 10s\n timeout http-keep-alive 300s",
            "http-request deny deny_status 429 if { sc0_http_req_rate(circuits) gt 1000000 }\n \
             http-request set-header X-Onion-Circuit %[src]",
            "option httpchk GET /health",
        ),
        Protocol::Tcp => ("mode tcp\n option splice-auto", "", ""),
    };
    format!(
        "global\n nbthread 1\n maxconn 20000\n ulimit-n 20000\n no strict-limits\n \
         stats socket {} mode 600 level admin\n\
         defaults\n {mode}\n timeout connect 5s\n timeout client 300s\n timeout server 30s\n timeout queue 5s\n\
         backend circuits\n stick-table type ipv6 size 100k expire 30m \
         store gpt0,conn_cur,conn_rate(10s),http_req_rate(10s)\n\
         frontend ingress\n bind {listen} accept-proxy defer-accept backlog 4096\n \
         tcp-request session track-sc0 src table circuits\n \
         tcp-request session reject if {{ sc0_get_gpt0(circuits) eq 2 }}\n \
         tcp-request session reject if {{ sc0_conn_rate(circuits) gt 1000000 }}\n \
         tcp-request session reject if {{ sc0_conn_cur(circuits) gt 60000 }}\n {front}\n \
         default_backend service\n\
         backend service\n {back}\n server one {service} check inter 5s\n",
        folder.join(CONTROL).display()
    )
}

/// nginx's configuration. It has no bans.
fn nginx_settings(
    protocol: Protocol,
    listen: SocketAddr,
    service: SocketAddr,
    folder: &Path,
) -> Result<String> {
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!(" {kind}_temp_path {}/{kind};\n", folder.display()))
        .concat();
    let (module, carries) = match protocol {
        Protocol::Http => (
            String::new(),
            format!(
                "http {{\n access_log off;\n{temporary} \
                 limit_req_zone $proxy_protocol_addr zone=requests:32m rate=1000000r/s;\n \
                 limit_conn_zone $proxy_protocol_addr zone=connections:32m;\n \
                 keepalive_timeout 300s;\n keepalive_requests 1000000000;\n \
                 upstream service {{ server {service}; keepalive 128; keepalive_requests 1000000000; }}\n \
                 server {{\n  listen {listen} proxy_protocol deferred backlog=4096;\n  \
                 limit_req zone=requests burst=1000000 nodelay;\n  limit_conn connections 60000;\n  \
                 location / {{\n   proxy_pass http://service;\n   proxy_http_version 1.1;\n   \
                 proxy_set_header Connection \"\";\n   proxy_set_header Host $host;\n   \
                 proxy_set_header X-Onion-Circuit $proxy_protocol_addr;\n  }}\n }}\n}}\n"
            ),
        ),
        Protocol::Tcp => (
            format!("load_module {};\n", find("ngx_stream_module.so")?.display()),
            format!(
                "stream {{\n limit_conn_zone $proxy_protocol_addr zone=connections:32m;\n server {{\n  \
                 listen {listen} proxy_protocol backlog=4096;\n  limit_conn connections 60000;\n  \
                 proxy_connect_timeout 5s;\n  proxy_timeout 300s;\n  proxy_pass {service};\n }}\n}}\n"
            ),
        ),
    };
    Ok(format!(
        "{module}daemon off;\nworker_processes 1;\nuser root;\nworker_rlimit_nofile 20000;\npid {}/pid;\n\
         events {{ worker_connections 20000; }}\n{carries}",
        folder.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_names_with_brackets() {
        let stat = "77 (a) b (c) S 12 77 77 0 -1 4194560 1 2 3 4 55 66 7 8 20 0 1 0 9";
        assert_eq!(field(stat, PARENT), Some(12));
        assert_eq!((field(stat, USER_TIME), field(stat, SYSTEM_TIME)), (Some(55), Some(66)));
        assert_eq!(field("", PARENT), None);
    }
}
