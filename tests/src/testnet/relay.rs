//! The nodes that make the network: authorities, which vote, and relays.

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};

use super::{
    Profile,
    control::Authentication,
    ground::{Ground, run},
    node::Node,
    ports::Port,
};

/// Authorities of every profile: tor needs a majority of signatures, and two of three outlive the loss of one.
const AUTHORITIES: usize = 3;

/// Relays of every profile beside them.
const RELAYS: usize = 5;

/// What names of authorities begin with.
const AUTHORITY: &str = "authority";

/// Whether this is an authority's name.
pub(super) fn is_authority(name: &str) -> bool {
    name.starts_with(AUTHORITY)
}

/// Lines of authorities and relays. None of them lets anything out of the network, so nothing resolves names either; the tests
/// that look for servers that forge answers would ask for some.
const RELAY_LINES: &str = "SocksPort 0\n\
                           AssumeReachable 1\n\
                           ExitRelay 0\n\
                           ExitPolicy reject *:*\n\
                           ServerDNSDetectHijacking 0\n\
                           ServerDNSTestAddresses\n\
                           ServerDNSResolvConfFile /dev/null\n\
                           ContactInfo nobody@localhost\n";

/// A node before it is configured.
struct Plan {
    node: Node,
    or_port: Port,
    /// Only an authority has one.
    dir_port: Option<Port>,
}

/// Makes, configures and starts all authorities and relays, the authorities first. Returns them and the lines by which other
/// nodes know the authorities.
///
/// # Errors
/// Names what could not be made or started.
pub(super) fn start(ground: &Arc<Ground>, profile: Profile, start: Start) -> Result<(Vec<Node>, String)> {
    let mut plans = Vec::new();
    for number in 0..AUTHORITIES {
        let node = Node::new(ground, format!("{AUTHORITY}{number}"), Authentication::None)?;
        plans.push(Plan { node, or_port: Port::take()?, dir_port: Some(Port::take()?) });
    }
    for number in 0..RELAYS {
        let node = Node::new(ground, format!("relay{number}"), Authentication::None)?;
        plans.push(Plan { node, or_port: Port::take()?, dir_port: None });
    }
    let (lines, fingerprints) = make_keys(&plans)?;
    let bandwidths = ground.path("bandwidths");
    fs::write(&bandwidths, bandwidth_lines(&fingerprints)?)
        .with_context(|| format!("writing {}", bandwidths.display()))?;
    for plan in &plans {
        let mut own =
            format!("{lines}{RELAY_LINES}Nickname {}\nORPort {}\n", plan.node.name, plan.or_port.address);
        if let Some(dir_port) = &plan.dir_port {
            let voting = voting_lines(profile, start);
            let _ = writeln!(
                own,
                "DirPort {}\nV3BandwidthsFile {}\n{voting}",
                dir_port.address,
                bandwidths.display()
            );
        }
        plan.node.configure(&own)?;
    }
    wait_for_a_good_moment(start)?;
    let mut nodes = Vec::new();
    for Plan { mut node, mut or_port, mut dir_port } in plans {
        node.start(std::iter::once(&mut or_port).chain(&mut dir_port))?;
        nodes.push(node);
    }
    Ok((nodes, lines))
}

/// How much time nodes have before the first votes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    /// Seconds between consensuses until there is a first one, which comes at a multiple of this in Unix time. They divide 30
    /// minutes, as tor demands.
    interval_seconds: u64,
    /// Seconds in which every node starts, and tells the authorities of itself.
    lead_seconds: u64,
}

impl Start {
    /// Enough on a machine that gives the nodes a part of its time.
    pub(super) const FIRST: Self = Self { interval_seconds: 20, lead_seconds: 6 };
    /// For when that was too little.
    pub(super) const LATER: [Self; 2] =
        [Self { interval_seconds: 40, lead_seconds: 20 }, Self { interval_seconds: 90, lead_seconds: 60 }];
}

/// Seconds that the exchange of the first votes may take, and then that of signatures: the least that tor allows.
const FIRST_DELAY_SECONDS: u64 = 2;

/// Waits until the next vote is far enough away for every node to be in it. The first consensus is made by the first votes, and
/// carries the profile's own interval already: whoever is missing in it is missing until the second one.
fn wait_for_a_good_moment(start: Start) -> Result<()> {
    let Start { interval_seconds, lead_seconds } = start;
    let latest = interval_seconds.saturating_sub(2 * FIRST_DELAY_SECONDS + lead_seconds);
    let now = unix_time()?;
    let interval = Duration::from_secs(interval_seconds);
    let into = Duration::from_secs(now.as_secs() % interval_seconds)
        + Duration::from_nanos(now.subsec_nanos().into());
    if into.as_secs() >= latest {
        thread::sleep(interval.saturating_sub(into));
    }
    Ok(())
}

fn unix_time() -> Result<Duration> {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("a clock before 1970")
}

/// How authorities vote. Whoever comes is called a directory of onion services at once, and a guard.
fn voting_lines(profile: Profile, start: Start) -> String {
    format!(
        "AuthoritativeDirectory 1\n\
         V3AuthoritativeDirectory 1\n\
         TestingDirAuthVoteHSDir *\n\
         TestingDirAuthVoteGuard *\n\
         TestingMinExitFlagThreshold 0\n\
         TestingV3AuthInitialVotingInterval {}\n\
         TestingV3AuthInitialVoteDelay {FIRST_DELAY_SECONDS}\n\
         TestingV3AuthInitialDistDelay {FIRST_DELAY_SECONDS}\n\
         V3AuthVotingInterval {} seconds\n\
         V3AuthVoteDelay 4\n\
         V3AuthDistDelay 4\n\
         V3AuthNIntervalsValid 2\n\
         ConsensusParams hsdir_interval={} hsdir_n_replicas={REPLICAS} hsdir_spread_fetch=1 hsdir_spread_store=1",
        start.interval_seconds,
        profile.voting_seconds(),
        profile.time_period_minutes(),
    )
}

/// Replicas of a descriptor. With a spread of 1 that is how many of the eight directories are right.
pub(super) const REPLICAS: usize = 2;

/// Measurements (bandwidth-file-spec.txt) that call all relays equal. Without them the first consensus knows next to nothing, and
/// clients choose by that: always the same few relays, with which some cannot build a circuit at all.
fn bandwidth_lines(fingerprints: &[String]) -> Result<String> {
    let mut lines = format!("{}\n", unix_time()?.as_secs());
    for fingerprint in fingerprints {
        let _ = writeln!(lines, "node_id=${fingerprint} bw=1000");
    }
    Ok(lines)
}

/// Makes all keys, at the same time because that is slow. Returns the lines by which nodes know the authorities, and the
/// fingerprints of all nodes.
fn make_keys(plans: &[Plan]) -> Result<(String, Vec<String>)> {
    let make = |plan: &Plan| -> Result<(String, String)> {
        let fingerprint = make_relay_keys(&plan.node)?;
        let Some(dir_port) = &plan.dir_port else { return Ok((String::new(), fingerprint)) };
        let identity = make_authority_keys(&plan.node, dir_port)?;
        let line = format!(
            "DirAuthority {} orport={} no-v2 v3ident={identity} {} {fingerprint}\n",
            plan.node.name,
            plan.or_port.address.port(),
            dir_port.address,
        );
        Ok((line, fingerprint))
    };
    thread::scope(|scope| {
        let made: Vec<_> = plans.iter().map(|plan| scope.spawn(move || make(plan))).collect();
        made.into_iter()
            .map(|made| made.join().map_err(|_| anyhow::anyhow!("making keys panicked"))?)
            .collect()
    })
}

/// Makes an authority's identity key, signing key and certificate, and returns the identity's fingerprint.
fn make_authority_keys(node: &Node, dir_port: &Port) -> Result<String> {
    let keys = node.path("data/keys");
    let certificate = keys.join("authority_certificate");
    let mut gencert = node.ground.gencert();
    gencert.args(["--create-identity-key", "--passphrase-fd", "0", "-m", "12"]);
    gencert.arg("-i").arg(keys.join("authority_identity_key"));
    gencert.arg("-s").arg(keys.join("authority_signing_key"));
    gencert.arg("-c").arg(&certificate);
    gencert.arg("-a").arg(dir_port.address.to_string());
    run(gencert, b"none\n").with_context(|| format!("making the keys of {}", node.name))?;
    let text = read(&certificate)?;
    let fingerprint = text.lines().find_map(|line| line.strip_prefix("fingerprint "));
    Ok(fingerprint.with_context(|| format!("{} has no fingerprint", certificate.display()))?.to_owned())
}

/// Makes a relay's keys and returns its fingerprint.
fn make_relay_keys(node: &Node) -> Result<String> {
    let mut tor = node.ground.tor();
    tor.args(["--quiet", "--ignore-missing-torrc", "--defaults-torrc", "/dev/null", "-f", "/dev/null"]);
    tor.arg("--DataDirectory").arg(node.path("data"));
    tor.args(["--list-fingerprint", "--ORPort", "1", "--Nickname", &node.name]);
    // tor keeps keys of an authority only where authorities are named; this one is nobody.
    tor.args(["--DirAuthority", &format!("nobody 127.0.0.1:1 {}", "F".repeat(40))]);
    run(tor, b"").with_context(|| format!("making the keys of {}", node.name))?;
    // `nickname FINGERPRINT`
    let text = read(&node.path("data/fingerprint"))?;
    Ok(text.split_whitespace().nth(1).context("a fingerprint without digits")?.to_owned())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// What a node's control port says of the network, as far as "up" depends on it.
///
/// # Errors
/// Says what is missing.
pub(super) fn check_consensus(listed: &str, names: &[String]) -> Result<()> {
    let mut nickname = "";
    let mut ready: Vec<&str> = Vec::new();
    for line in listed.lines() {
        // dir-spec.txt, section 3.4.1: `r` opens an entry, `s` has its flags.
        if let Some(entry) = line.strip_prefix("r ") {
            nickname = entry.split(' ').next().unwrap_or_default();
        } else if let Some(flags) = line.strip_prefix("s ") {
            let has = |wanted: &str| flags.split(' ').any(|flag| flag == wanted);
            if ["Running", "Valid", "HSDir", "Guard"].into_iter().all(has) {
                ready.push(nickname);
            }
        }
    }
    let missing: Vec<&str> = names.iter().map(String::as_str).filter(|name| !ready.contains(name)).collect();
    ensure!(missing.is_empty(), "not in its consensus, or without a flag: {}", missing.join(", "));
    Ok(())
}
