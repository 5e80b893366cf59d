//! Private Tor networks: three authorities and five relays of the real tor, on loopback, with onion services and clients.
//!
//! A network is *up* when each of its nodes has a consensus in which all eight are running directories of onion services and
//! guards, each has what it needs to build circuits, and circuits of three hops through every node have been built. A client is
//! up when it has built a circuit of its own, a service when every descriptor is with every directory that a client may ask. All of
//! that is asked of the processes' control sockets.
//!
//! The next consensus is minutes away, so a network whose first one lacks a node is started anew, with more time for its nodes to
//! be in the first votes.
//!
//! Nothing leaves the machine: the authorities are the only ones the nodes know, no relay is an exit, and outgoing
//! connections are bound to 127.0.0.1, from which the kernel sends nothing elsewhere.
//!
//! Every process ends with the one that started it, however that ends. The folder goes with the network, unless something here
//! failed or a thread that owns a part of it panics: then it stays under another name, which standard error tells.

use std::{
    fs,
    ops::Deref,
    path::Path,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Instant,
};

use anyhow::{Context, Result, bail};

pub use client::Client;
pub use control::{Authentication, Control, ControlAddress};
pub use page::Page;
pub use register::{Entry, end, entries};
pub use ring::{Place, SharedRandom, SharedRandoms};
pub use service::{Backend, ProofOfWork, Service, ServiceOptions, Upload, Uploads};
pub use socks::connect;

pub use ground::{start_nothing_more, verify_torrc};

pub(crate) use ports::Port;

use ground::Ground;
use node::{Node, PATIENCE};

mod arti;
mod client;
mod control;
mod ground;
mod node;
mod page;
mod ports;
mod register;
mod relay;
mod ring;
mod service;
mod socks;

/// What a network is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Votes every 300 s, so that a time period of onion services lasts two hours and tests practically never meet its end.
    Usual,
    /// Votes every 20 s, so that a time period lasts 8 min. Two shared random values need 16 to 24 min: start it first, and let
    /// it age.
    Rotation,
}

impl Profile {
    /// Seconds between two votes, once the first consensus is there.
    pub const fn voting_seconds(self) -> u64 {
        match self {
            Self::Usual => 300,
            Self::Rotation => 20,
        }
    }

    /// Minutes of a time period: 24 votes, which is what tor makes of it in a test network whatever the consensus says.
    pub const fn time_period_minutes(self) -> u64 {
        24 * self.voting_seconds() / 60
    }
}

/// A network that is up. Dropping it ends its processes; services and clients end by themselves.
#[derive(Debug)]
pub struct Network {
    nodes: Vec<Node>,
    authorities: String,
    ground: Arc<Ground>,
    services: AtomicU32,
    clients: AtomicU32,
}

impl Network {
    /// Starts a network in a temporary folder and waits until it is up.
    ///
    /// # Errors
    /// Names the node that did not come up, with the end of its log.
    pub fn start(profile: Profile) -> Result<Self> {
        Self::on(Ground::temporary()?, profile)
    }

    /// Starts a network in a new folder of this name, which stays whatever happens, and waits until it is up.
    ///
    /// # Errors
    /// As [`Network::start`], and if the folder exists.
    pub fn start_in(folder: &Path, profile: Profile) -> Result<Self> {
        Self::on(Ground::lasting(folder)?, profile)
    }

    fn on(ground: Ground, profile: Profile) -> Result<Self> {
        let ground = Arc::new(ground);
        let mut network = Self::attempt(&ground, profile, relay::Start::FIRST)?;
        for start in relay::Start::LATER {
            // With seldom votes nobody waits for the second consensus.
            if profile == Profile::Rotation || network.is_whole()? {
                break;
            }
            let folders: Vec<_> = network.nodes.iter().map(|node| node.path("")).collect();
            drop(network);
            for folder in folders {
                fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
            }
            network = Self::attempt(&ground, profile, start)?;
        }
        network.wait_until_up()?;
        Ok(network)
    }

    fn attempt(ground: &Arc<Ground>, profile: Profile, start: relay::Start) -> Result<Self> {
        let started = relay::start(ground, profile, start).inspect_err(|_| ground.keep());
        let (nodes, authorities) = started?;
        let ground = Arc::clone(ground);
        Ok(Self { nodes, authorities, ground, services: AtomicU32::new(0), clients: AtomicU32::new(0) })
    }

    fn names(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.name.clone()).collect()
    }

    /// Waits for the first consensus, and returns whether all nodes are in it: one is not if the machine stood still while it
    /// told the authorities of itself.
    fn is_whole(&mut self) -> Result<bool> {
        let names = self.names();
        let Some(first) = self.nodes.first_mut() else { bail!("a network without nodes") };
        let mut control = first.control()?;
        first.wait("a first consensus", |_| {
            let listed = control.information("ns/all")?;
            let is_there = listed.lines().any(|line| line.starts_with("r "));
            Ok(is_there.then(|| relay::check_consensus(&listed, &names).is_ok()))
        })
    }

    /// See the module for what "up" means.
    fn wait_until_up(&mut self) -> Result<()> {
        let names = self.names();
        let mut fingerprints = Vec::new();
        // Authorities come first and make the consensus, relays fetch it.
        for node in &mut self.nodes {
            let mut control = node.control()?;
            if !relay::is_authority(&node.name) {
                // It asked in vain so often that it waits long before it asks again; a reload forgets that.
                control.ask("SIGNAL RELOAD")?;
            }
            node.wait("a consensus with all nodes", |_| {
                relay::check_consensus(&control.information("ns/all")?, &names).map(Some)
            })?;
            fingerprints.push(control.information("fingerprint")?);
        }
        for node in &mut self.nodes {
            let mut control = node.control()?;
            node.wait("what it needs to build circuits", |_| {
                let is_enough = control.information("status/enough-dir-info")? == "1";
                Ok(is_enough.then_some(()))
            })?;
        }
        let (Some(first), Some((_, others))) = (self.nodes.first_mut(), fingerprints.split_first()) else {
            bail!("a network without nodes");
        };
        // The last circuit overlaps its neighbour, so that it has three hops as well.
        let last = others.len().saturating_sub(3);
        for hops in others.chunks_exact(3).chain(others.get(last..)) {
            let address = first.control_address();
            first.wait("a circuit", |_| build_circuit(&mut address.connect()?, hops).map(Some))?;
        }
        Ok(())
    }

    /// Starts an onion service on a tor of its own and waits until it is published.
    ///
    /// # Errors
    /// If that does not come; the end of tor's log is in the message.
    pub fn service(&self, options: &ServiceOptions) -> Result<Service> {
        let name = format!("service{}", self.services.fetch_add(1, Ordering::Relaxed));
        Service::start(&self.ground, name, &self.authorities, options)
    }

    /// The keys of an onion service as tor makes them: their folder, and the onion address that tor says. Nobody publishes it, so
    /// that no directory of this network has seen it.
    ///
    /// # Errors
    /// If they do not come; the end of tor's log is in the message.
    pub fn unpublished_keys(&self) -> Result<(std::path::PathBuf, String)> {
        let name = format!("keys{}", self.services.fetch_add(1, Ordering::Relaxed));
        let mut node = Node::new(&self.ground, name, Authentication::None)?;
        let folder = node.path("onion");
        node.configure(&format!(
            "{}SocksPort 0\nDisableNetwork 1\nHiddenServiceDir {}\nHiddenServicePort 80 127.0.0.1:9\n",
            self.authorities,
            folder.display()
        ))?;
        node.start([])?;
        let address = node.wait("the keys of a service", |_| {
            let name = fs::read_to_string(folder.join("hostname")).ok();
            Ok(name.filter(|name| name.ends_with('\n')))
        })?;
        Ok((folder, address.trim().to_owned()))
    }

    /// Starts a client with a tor of its own and waits until it is up.
    ///
    /// # Errors
    /// If that does not come; the end of tor's log is in the message.
    pub fn client(&self) -> Result<Client> {
        let name = format!("client{}", self.clients.fetch_add(1, Ordering::Relaxed));
        Client::start(&self.ground, name, &self.authorities)
    }

    /// The network's folder: below it one for each node, with its `torrc`, its `notice.log` and its `data`.
    pub fn folder(&self) -> std::path::PathBuf {
        self.ground.path("")
    }

    /// All processes that were started in this network, the owner first.
    ///
    /// # Errors
    /// If the register cannot be read.
    pub fn processes(&self) -> Result<Vec<Entry>> {
        entries(&self.folder())
    }

    /// Names and fingerprints (40 hexadecimal digits) of authorities and relays, all of which are directories of onion
    /// services.
    ///
    /// # Errors
    /// If one does not answer.
    pub fn fingerprints(&self) -> Result<Vec<(String, String)>> {
        let fingerprint = |node: &Node| node.control_address().connect()?.information("fingerprint");
        self.nodes.iter().map(|node| Ok((node.name.clone(), fingerprint(node)?))).collect()
    }

    /// What Arti must be told to find this network, for `arti.network_file`.
    ///
    /// # Errors
    /// If an authority does not answer.
    pub fn arti_settings(&self) -> Result<String> {
        let first = self.nodes.first().context("a network without nodes")?;
        let descriptors = first.control_address().connect()?.information("desc/all-recent")?;
        arti::settings(&self.authorities, &descriptors)
    }

    /// Control sockets of authorities and relays, by name. They ask for nothing.
    pub fn control_addresses(&self) -> Vec<(String, ControlAddress)> {
        self.nodes.iter().map(|node| (node.name.clone(), node.control_address())).collect()
    }

    /// The consensus that the first authority holds (dir-spec.txt, section 3.4.1).
    ///
    /// # Errors
    /// If it does not answer.
    pub fn consensus(&self) -> Result<String> {
        let first = self.nodes.first().context("a network without nodes")?;
        first.control_address().connect()?.information("dir/status-vote/current/consensus")
    }

    /// Keeps the folder, with all logs, when the network ends: for a test that fails by other means than a panic.
    pub fn keep_logs(&self) {
        self.ground.keep();
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if thread::panicking() {
            self.ground.keep();
        }
        // All at the same time; each is waited for when it is dropped.
        self.nodes.iter().for_each(Node::ask_to_end);
    }
}

/// Builds a circuit through these relays, by their fingerprints, and closes it.
fn build_circuit(control: &mut Control, hops: &[String]) -> Result<()> {
    control.ask("SETEVENTS CIRC")?;
    let path: Vec<String> = hops.iter().map(|hop| format!("${hop}")).collect();
    let reply = control.ask(&format!("EXTENDCIRCUIT 0 {}", path.join(",")))?;
    let id = reply
        .first()
        .and_then(|line| line.strip_prefix("EXTENDED "))
        .context("no number of a circuit")?
        .to_owned();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let event = control.event(deadline)?.context("the circuit is not built")?;
        let mut words = event.split(' ');
        if words.next() != Some("CIRC") || words.next() != Some(&id) {
            continue;
        }
        match words.next() {
            Some("BUILT") => break,
            Some("FAILED" | "CLOSED") => bail!("{event}"),
            _ => {}
        }
    }
    control.ask(&format!("CLOSECIRCUIT {id}")).map(drop)
}

/// The network that the tests of one program share.
static SHARED: [Mutex<Option<Arc<Network>>>; 2] = [Mutex::new(None), Mutex::new(None)];

/// A share of a network; see [`shared`].
#[derive(Debug)]
pub struct Share(Arc<Network>);

impl Deref for Share {
    type Target = Network;

    fn deref(&self) -> &Network {
        &self.0
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.keep_logs();
        }
    }
}

/// The network of this profile that this program's tests share; the first who asks starts it, and it ends with the program.
///
/// # Errors
/// As [`Network::start`]; the next who asks tries again.
pub fn shared(profile: Profile) -> Result<Share> {
    static REGISTERED: OnceLock<Result<(), String>> = OnceLock::new();
    let registered = REGISTERED.get_or_init(|| {
        crate::sys::at_exit(end_shared).map_err(|error| format!("registering the end of a network: {error}"))
    });
    if let Err(error) = registered {
        bail!("{error}");
    }
    let [usual, rotation] = &SHARED;
    let place = match profile {
        Profile::Usual => usual,
        Profile::Rotation => rotation,
    };
    let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
    let network = match place.take() {
        Some(network) => network,
        None => Arc::new(Network::start(profile)?),
    };
    *place = Some(Arc::clone(&network));
    Ok(Share(network))
}

extern "C" fn end_shared() {
    for place in &SHARED {
        drop(place.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}
