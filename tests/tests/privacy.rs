//! What our processes do not tell the world: they open no connection to it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    fs,
    io::Write as _,
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, User},
};
use tunica_tests::{
    armed::{install, program},
    ingress::{Backend, get, header, read_answer},
    lab::{CLIENT, HOST_INTERFACE, Lab},
    sys::end_with_parent,
};

/// The account that the ingress runs as here.
const FRONT: &str = "nobody";

/// Addresses that no host of the lab has, nor its networks.
const WORLD: [&str; 2] = ["198.51.100.1", "2001:db8::1"];

struct Front(Child);

impl Drop for Front {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the ingress on the lab's host, as its own account.
fn front(lab: &Lab) -> Front {
    let copy = lab.path("tunica-front");
    install(&program("tunica-front").unwrap(), &copy).unwrap();
    let log = fs::File::create(lab.path("front.log")).unwrap();
    let mut command = lab.host.command(Path::new("setpriv"));
    command.args(["--reuid", FRONT, "--regid", "nogroup", "--clear-groups"]).arg(&copy);
    command.arg("--config").arg(lab.path("tunica.toml")).stdin(Stdio::null());
    command.stdout(log.try_clone().unwrap()).stderr(log);
    Front(end_with_parent(&mut command).spawn().unwrap())
}

/// Gives the host a way to the whole world over both families, else what opens a connection there fails before it makes a
/// packet, and nothing is counted. What the kernel itself sends for it, as the discovery of neighbours, belongs to no uid.
fn lead_to_world(lab: &Lab) {
    lab.host.ip(&["route", "add", "default", "via", &CLIENT.to_string()]).unwrap();
    for (key, value) in [("addr_gen_mode", "1"), ("accept_ra", "0"), ("disable_ipv6", "0")] {
        lab.host.write_sysctl(&format!("net/ipv6/conf/{HOST_INTERFACE}/{key}"), value).unwrap();
    }
    lab.host.ip(&["address", "add", "2001:db8:77::1/64", "dev", HOST_INTERFACE, "nodad"]).unwrap();
    lab.host.ip(&["-6", "route", "add", "default", "via", "2001:db8:77::2", "dev", HOST_INTERFACE]).unwrap();
}

/// Counts what a uid's sockets send to anywhere but loopback.
fn watch(lab: &Lab, uids: &[u32]) {
    let mut rules =
        "add table inet watch; add chain inet watch out { type filter hook output priority -300; }; \
                     add rule inet watch out oifname lo accept; "
            .to_owned();
    for uid in uids {
        rules.push_str(&format!(
            "add counter inet watch uid{uid}; add rule inet watch out meta skuid {uid} counter name uid{uid}; "
        ));
    }
    lab.run_in_host("nft", &[&rules]).unwrap();
}

fn packets(lab: &Lab, uid: u32) -> u64 {
    let listed = lab.run_in_host("nft", &[&format!("list counter inet watch uid{uid}")]).unwrap();
    let mut words = listed.split_whitespace();
    words.by_ref().find(|word| *word == "packets");
    words.next().unwrap().parse().unwrap()
}

#[test]
fn no_process_of_ours_opens_a_connection_to_the_world() {
    let mut lab = Lab::new("privacy").unwrap();
    lab.host.ip(&["link", "set", "lo", "up"]).unwrap();
    // The ingress' account must reach its configuration.
    let folder = lab.path("");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    let nobody = User::from_name(FRONT).unwrap().unwrap().uid.as_raw();
    lead_to_world(&lab);
    watch(&lab, &[0, nobody]);
    let listen = SocketAddr::from(([127, 0, 0, 1], 10_000));
    let backend = lab.host.run(Backend::start).unwrap();
    let configuration = |most: u32| {
        format!(
            "[ingress]\nenabled = true\nlisten = \"{listen}\"\nbackends = [\"{}\"]\nuser = \"{FRONT}\"\n\
             health_every_seconds = 1\n[circuits]\nprofile = \"web\"\nmax_connections_per_second = {most}",
            backend.address()
        )
    };
    lab.configure("mode = \"observe\"", &configuration(50)).unwrap();
    lab.start().unwrap();
    let mut front = front(&lab);
    lab.wait_for("the ingress", |lab| Ok(lab.metric("tunica_front_up")? == Some(1.0))).unwrap();
    // Streams of clients, a ban with what follows from it, questions, a reload.
    let visit = |circuit: u32| {
        lab.host
            .run(|| {
                let mut stream = TcpStream::connect(listen)?;
                stream.write_all(format!("{}{}", header(circuit), get("/")).as_bytes())?;
                let mut answer = Vec::new();
                read_answer(&mut stream, &mut answer)?;
                Ok(answer.starts_with(b"HTTP/1.1 200"))
            })
            .unwrap_or(false)
    };
    assert!((1..=20).all(visit));
    lab.must(&["circuit", "ban", "7"]).unwrap();
    lab.must(&["ban", "add", "203.0.113.5", "--for", "1h", "--reason", "test"]).unwrap();
    lab.wait_for("the ban", |lab| Ok(lab.metric("tunica_circuits_banned")? == Some(1.0))).unwrap();
    for verb in [
        &["status"][..],
        &["circuits"],
        &["explain", "203.0.113.5"],
        &["explain", "circuit", "7"],
        &["doctor"],
    ] {
        let ran = lab.tunica(verb).unwrap();
        assert!(matches!(ran.code, Some(0 | 7)), "{ran:?}");
    }
    lab.configure("mode = \"enforce\"", &configuration(51)).unwrap();
    lab.must(&["reload"]).unwrap();
    lab.wait_for("packets", |lab| {
        Ok(lab.metric("tunica_front_requests_total")?.is_some_and(|count| count >= 20.0))
    })
    .unwrap();
    let front_pid = Pid::from_raw(i32::try_from(front.0.id()).unwrap());
    kill(front_pid, Signal::SIGTERM).unwrap();
    front.0.wait().unwrap();
    assert!(lab.end(Signal::SIGTERM).unwrap().success());
    assert_eq!([0, nobody].map(|uid| packets(&lab, uid)), [0, 0], "packets to the world by uid");

    // The counters do count what would go to the world: one packet of each, over each family.
    for (sent, address) in (1..).zip(WORLD) {
        let send = format!("echo >/dev/udp/{address}/9");
        lab.run_in_host("bash", &["-c", &send]).unwrap();
        let as_front = ["--reuid", FRONT, "--regid", "nogroup", "--clear-groups", "bash", "-c", &send];
        lab.run_in_host("setpriv", &as_front).unwrap();
        assert_eq!([0, nobody].map(|uid| packets(&lab, uid)), [sent, sent], "{address}");
    }
}
