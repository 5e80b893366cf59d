//! What `tunica render` prints, read by the programs it is for.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::DirBuilderExt as _,
    time::Duration,
};

use tunica_tests::{
    frame::{FIN, PSH, SYN, TCP, URG, tcp, v4},
    lab::{CLIENT, HOST, Lab},
    testnet,
};

/// Rules as ufw and docker make them, which must stay.
const NEIGHBOURS: &str = "*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER-USER - [0:0]
:ufw-user-input - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -j ufw-user-input
-A FORWARD -j DOCKER-USER
-A DOCKER-USER -j RETURN
-A ufw-user-input -p tcp -m tcp --dport 443 -j ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
-A PREROUTING -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
COMMIT
";

/// Every rule of both families, without dates and counts.
fn rules(lab: &Lab) -> String {
    ["iptables-save", "ip6tables-save"]
        .map(|tool| lab.run_in_host(tool, &[]).unwrap())
        .concat()
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| format!("{}\n", line.split(" [").next().unwrap_or_default()))
        .collect()
}

/// Packets by rule of a chain, as `iptables-save -c` prints them.
fn counts(lab: &Lab) -> BTreeMap<String, u64> {
    let listed = lab.run_in_host("iptables-save", &["-c"]).unwrap();
    let rows = listed.lines().filter_map(|line| {
        let (count, rule) = line.strip_prefix('[')?.split_once("] ")?;
        Some((rule.to_owned(), count.split(':').next()?.parse().ok()?))
    });
    rows.collect()
}

fn counted(lab: &Lab, part: &str) -> u64 {
    counts(lab).iter().filter(|(rule, _)| rule.contains(part)).map(|(_, packets)| packets).sum()
}

fn script(lab: &Lab, text: &str, verb: &str) -> String {
    let file = lab.path("shield.sh");
    fs::write(&file, text).unwrap();
    lab.run_in_host("sh", &[file.to_str().unwrap(), verb]).unwrap()
}

/// Connects to `port` on the host's loopback so many times, and says how often that worked.
fn connect(lab: &Lab, port: u16, times: usize) -> usize {
    lab.host
        .run(|| {
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            let listener = TcpListener::bind(address)?;
            let open: Vec<_> = (0..times)
                .filter_map(|_| TcpStream::connect_timeout(&address, Duration::from_millis(20)).ok())
                .collect();
            drop(listener);
            Ok(open.len())
        })
        .unwrap()
}

#[test]
fn the_script_drops_what_it_says_and_leaves_no_trace() {
    let lab = Lab::new("script").unwrap();
    let restore = lab.path("neighbours");
    fs::write(&restore, NEIGHBOURS).unwrap();
    for tool in ["iptables-restore", "ip6tables-restore"] {
        let family = if tool.starts_with("ip6") {
            NEIGHBOURS.replace("172.17.0.2:80", "[fd00::2]:80")
        } else {
            NEIGHBOURS.to_owned()
        };
        fs::write(&restore, family).unwrap();
        lab.run_in_host(tool, &[restore.to_str().unwrap()]).unwrap();
    }
    let before = rules(&lab);
    let text =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/iptables-shield.sh")).unwrap();
    assert_eq!(text, lab.must(&["render", "iptables"]).unwrap(), "run `cargo xtask generate`");

    let shown = script(&lab, &text, "dry-run");
    assert!(shown.contains("-I INPUT 1 -j TUNICA\nCOMMIT"), "{shown}");
    assert_eq!(rules(&lab), before, "dry-run changed something");
    script(&lab, &text, "start");
    let running = rules(&lab);
    assert_eq!(running.matches("-A INPUT -j TUNICA\n").count(), 2, "{running}");
    assert!(
        running.contains("--limit 5/min -j LOG --log-prefix \"SHIELD_DOS_DROP: \" --log-level 7"),
        "{running}"
    );
    script(&lab, &text, "start");
    assert_eq!(rules(&lab), running, "starting again changed something");
    assert!(script(&lab, &text, "status").contains("Chain TUNICA_DROP"));

    let frame = |flags| v4(CLIENT.octets(), TCP).frame(&tcp(flags, 5));
    let to_host = |flags| {
        let mut frame = frame(flags);
        frame[30..34].copy_from_slice(&HOST.octets());
        frame
    };
    lab.send(&to_host(FIN | PSH | URG), 5).unwrap();
    lab.send(&to_host(SYN), 50).unwrap();
    assert_eq!(counted(&lab, "FIN,PSH,URG -j TUNICA_DROP"), 5);
    let (over, dropped) = (counted(&lab, "tunica_syn "), counted(&lab, "-A TUNICA_DROP -j DROP"));
    assert!((20..=30).contains(&over), "{over} of 50 SYNs of one source were over its limit");
    assert_eq!(dropped, over + 5);
    assert_eq!(counted(&lab, "tunica_budget"), 0);
    assert_eq!(counted(&lab, "-A ufw-user-input"), 50 - over, "what passes is left to the host's own rules");

    script(&lab, &text, "stop");
    assert_eq!(rules(&lab), before, "stop left a trace");
    script(&lab, &text, "stop");
    assert_eq!(rules(&lab), before);
}

#[test]
fn ports_on_loopback_are_limited_by_iptables_and_by_nft() {
    let lab = Lab::new("loopback").unwrap();
    lab.configure("mode = \"enforce\"", "").unwrap();
    let config = lab.path("tunica.toml");
    let options = ["--socks-port", "9050", "--hs-port", "443", "--syn-rate", "2"];
    let arguments =
        |what: &'static str| [&["--config", config.to_str().unwrap(), "render", what], &options[..]].concat();
    let is_limited = |when: &str| {
        // 20 at once and 2 a second; 6 at once and 2 a second.
        for (port, at_once) in [(9_050, 20), (10_000, 6), (10_001, 40)] {
            let made = connect(&lab, port, 40);
            assert!((at_once..at_once + 5).contains(&made), "{when}: {made} connections to port {port}");
        }
    };
    let ran = lab.tunica(&arguments("iptables")).unwrap();
    assert!(ran.err.contains("no packet ever arrives at an onion service's virtual port"), "{}", ran.err);
    assert!(ran.err.contains("the ingress port 10000 on loopback"), "{}", ran.err);
    script(&lab, &ran.out, "start");
    is_limited("iptables");
    script(&lab, &ran.out, "stop");
    assert_eq!(connect(&lab, 10_000, 40), 40);

    let ran = lab.tunica(&arguments("nft")).unwrap();
    assert!(ran.err.contains("the ingress port 10000 on loopback"), "{}", ran.err);
    let file = lab.path("table.json");
    fs::write(&file, ran.out).unwrap();
    lab.run_in_host("nft", &["-j", "-f", file.to_str().unwrap()]).unwrap();
    is_limited("nft");
    let listed = lab.run_in_host("nft", &["list", "table", "inet", "tunica"]).unwrap();
    assert!(listed.contains("limit rate over 2/second burst 6 packets } goto over_budget"), "{listed}");
}

#[test]
fn sysctl_reads_the_file() {
    let lab = Lab::new("sysctl").unwrap();
    let file = lab.path("90-tunica.conf");
    fs::write(&file, lab.must(&["render", "sysctl"]).unwrap()).unwrap();
    // Set and read back in the namespace, as far as it has the keys; the backlog of the card is the machine's.
    for line in fs::read_to_string(&file).unwrap().lines().filter(|line| line.starts_with("net.ipv4.")) {
        let (key, value) = line.split_once(" = ").unwrap();
        let path = key.replace('.', "/");
        lab.host.write_sysctl(&path, value).unwrap();
        assert_eq!(lab.host.read_sysctl(&path).unwrap(), value, "{key}");
    }
    let text = fs::read_to_string(&file).unwrap();
    for line in [
        "net.ipv4.tcp_syncookies = 1",
        "net.ipv4.tcp_max_syn_backlog = 8192",
        "net.ipv4.tcp_synack_retries = 2",
        "net.core.netdev_max_backlog = 5000",
    ] {
        assert_eq!(text.lines().filter(|is| *is == line).count(), 1, "{line}");
    }
    assert!(fs::metadata("/proc/sys/net/core/netdev_max_backlog").is_ok());
}

#[test]
fn tor_takes_the_lines_of_a_service() {
    let lab = Lab::new("torrc").unwrap();
    lab.configure("", "[ingress]\nenabled = true\nsocket = \"/run/a b/in\\\"gress.sock\"").unwrap();
    let config = lab.path("tunica.toml");
    let folder = lab.path("service");
    fs::DirBuilder::new().mode(0o700).create(&folder).unwrap();
    let base =
        ["render", "torrc", "--config", config.to_str().unwrap(), "--service-dir", folder.to_str().unwrap()];
    for more in [
        &[][..],
        &["--large"],
        &["--relay"],
        &["--large", "--relay", "--hs-port", "443"],
        &["--end-full-circuits", "--intro-points", "3"],
        &["--intro-points", "20"],
    ] {
        let text = lab.must(&[&base, more].concat()).unwrap();
        let torrc = lab.path("torrc");
        fs::write(&torrc, format!("DataDirectory {}\n{text}", lab.path("data").display())).unwrap();
        testnet::verify_torrc(&torrc).unwrap_or_else(|error| panic!("{more:?}: {error:#}"));
        // The same program finds nothing wrong with what tor would publish.
        let checked =
            lab.tunica(&["check", config.to_str().unwrap(), "--torrc", torrc.to_str().unwrap()]).unwrap();
        assert!(checked.out.contains("1 port published"), "{checked:?}");
    }
    for number in ["2", "21"] {
        let ran = lab.tunica(&[&base[..], &["--intro-points", number]].concat()).unwrap();
        assert!(ran.code != Some(0) && ran.out.is_empty() && ran.err.contains("3..=20"), "{ran:?}");
    }
    let wrong = lab.path("wrong");
    fs::write(&wrong, "HiddenServicePoWQueueRate 25\n").unwrap();
    assert!(testnet::verify_torrc(&wrong).is_err());
}

#[test]
fn the_unit_names_the_paths_it_is_given() {
    let lab = Lab::new("unit").unwrap();
    let shipped =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/tunicad.service")).unwrap();
    assert_eq!(lab.must(&["render", "systemd"]).unwrap(), shipped);
    let moved = lab
        .must(&["--config", "/etc/other.toml", "render", "systemd", "--bin-dir", "/opt/tunica/bin/"])
        .unwrap();
    assert!(moved.contains("\nExecStart=/opt/tunica/bin/tunicad --config /etc/other.toml\n"), "{moved}");
    assert!(moved.contains("\nExecReload=/opt/tunica/bin/tunica reload\n"), "{moved}");
}
