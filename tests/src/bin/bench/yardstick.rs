//! xdp-tools' `xdp-filter`, which drops by source address as the shield does.

use std::{
    fs,
    net::Ipv4Addr,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, PerCpuHashMap, PerCpuValues},
    programs::Xdp,
};
use tunica_tests::{netns::Namespace, sys::bpf::program_by_id};

/// The program that `xdp-filter` loads for IP addresses where all others are allowed.
const PROGRAM: &str = "xdpfilt_alw_ip";

/// Its table of IPv4 addresses, and where the command pins it.
const TABLE: &str = "filter_ipv4";
const PINNED: &str = "/sys/fs/bpf/xdp-filter/filter_ipv4";

/// How large the table is made for [`Filter::of_many`]: as large as the shield's.
const ENTRIES: u32 = 131_072;

/// `xdp-filter` as its own command loads it, on a pair of interfaces in a namespace of its own.
#[derive(Debug)]
pub(crate) struct Filter {
    program: OwnedFd,
    tag: String,
    /// What the command wrote for the one source.
    row: u64,
    _namespace: Namespace,
}

impl Filter {
    /// Starts it with one source to drop. The caller's mount namespace must be its own, since the command pins its maps.
    ///
    /// # Errors
    /// What the command said.
    pub(crate) fn of_one(purpose: &str, source: Ipv4Addr) -> Result<Self> {
        let namespace = Namespace::create(purpose, "filter")?;
        namespace.ip(&["link", "add", "one", "type", "veth", "peer", "name", "other"])?;
        namespace.ip(&["link", "set", "one", "up"])?;
        namespace.ip(&["link", "set", "other", "up"])?;
        let filter = |arguments: &[&str]| {
            let mut command = namespace.command(Path::new("xdp-filter"));
            // Without libxdp's dispatcher, which would add a second program to each packet's way.
            say(command.args(arguments).env("LIBXDP_SKIP_DISPATCHER", "1")).map(|_| ())
        };
        filter(&["load", "--mode", "native", "--policy", "allow", "--features", "ipv4", "one"])?;
        filter(&["ip", "--mode", "src", &source.to_string()])?;
        let shown = say(Command::new("ip").args(["-n", namespace.name(), "-j", "link", "show", "one"]))?;
        let shown: serde_json::Value = serde_json::from_str(&shown).context("reading `ip -j link show`")?;
        let program = shown.pointer("/0/xdp/prog").context("xdp-filter attached nothing")?;
        let text = |key: &str| program.get(key).and_then(|value| value.as_str()).map(str::to_owned);
        ensure!(text("name").as_deref() == Some(PROGRAM), "xdp-filter attached another program: {program}");
        let id =
            program.get("id").and_then(serde_json::Value::as_u64).context("a program without identity")?;
        let pinned = MapData::from_pin(PINNED).context("opening xdp-filter's table")?;
        let table: PerCpuHashMap<_, [u8; 4], u64> = aya::maps::Map::from_map_data(pinned)?.try_into()?;
        let row = table.get(&source.octets(), 0).context("reading what xdp-filter wrote")?;
        Ok(Self {
            program: program_by_id(u32::try_from(id)?).context("opening xdp-filter's program")?,
            tag: text("tag").context("a program without tag")?,
            row: row.first().copied().context("an empty row")?,
            _namespace: namespace,
        })
    }

    pub(crate) const fn program(&self) -> &OwnedFd {
        &self.program
    }

    /// The same program with a larger table that holds all these sources. The command's own holds 10 000.
    ///
    /// # Errors
    /// When its object is not found, or is not the one that the command loads.
    pub(crate) fn of_many(&self, sources: impl Iterator<Item = Ipv4Addr>) -> Result<Enlarged> {
        let bytes = fs::read(object()?).context("reading xdp-filter's object")?;
        let mut ebpf = EbpfLoader::new().map_max_entries(TABLE, ENTRIES).load(&bytes)?;
        let program: &mut Xdp =
            ebpf.program_mut(PROGRAM).context("xdp-filter's object lacks its program")?.try_into()?;
        program.load()?;
        let tag = format!("{:016x}", program.info()?.tag());
        ensure!(tag == self.tag, "xdp-filter's object has tag {tag}, its command loads {}", self.tag);
        let cores = aya::util::nr_cpus().map_err(|(_, error)| error).context("counting processors")?;
        let table = ebpf.map_mut(TABLE).context("xdp-filter's object lacks its table")?;
        let mut table: PerCpuHashMap<_, [u8; 4], u64> = table.try_into()?;
        for source in sources {
            table
                .insert(source.octets(), PerCpuValues::try_from(vec![self.row; cores])?, 0)
                .context("filling xdp-filter's table")?;
        }
        Ok(Enlarged { ebpf })
    }
}

/// `xdp-filter`'s program with a larger table.
#[derive(Debug)]
pub(crate) struct Enlarged {
    ebpf: Ebpf,
}

impl Enlarged {
    /// The program.
    ///
    /// # Errors
    /// When it is not loaded, which cannot be.
    pub(crate) fn program(&self) -> Result<OwnedFd> {
        let program: &Xdp = self.ebpf.program(PROGRAM).context("no program")?.try_into()?;
        Ok(program.fd()?.as_fd().try_clone_to_owned()?)
    }
}

/// Where the distribution put the object.
fn object() -> Result<PathBuf> {
    let name = format!("bpf/{PROGRAM}.o");
    let folders = fs::read_dir("/usr/lib").context("reading /usr/lib")?.flatten().map(|entry| entry.path());
    let places = folders.chain([PathBuf::from("/usr/lib"), PathBuf::from("/usr/lib64")]);
    places
        .map(|folder| folder.join(&name))
        .find(|path| path.is_file())
        .with_context(|| format!("no folder of /usr/lib has {name}: install xdp-tools"))
}

/// Runs a command and returns what it printed.
///
/// # Errors
/// With its last words.
pub(crate) fn say(command: &mut Command) -> Result<String> {
    let line = format!("{command:?}").replace('"', "");
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting `{line}`"))?;
    if !output.status.success() {
        let words = [output.stdout, output.stderr].concat();
        bail!("`{line}` failed: {}", String::from_utf8_lossy(&words).trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{line}` printed no UTF-8"))
}
