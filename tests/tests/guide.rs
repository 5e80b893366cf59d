//! What the guide and the runbooks tell an operator to type, typed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Stdio},
};

use nix::sys::signal::Signal;
use tunica_tests::{
    armed::program,
    lab::{Lab, null_segment},
};

/// A command line of `tunica`, and whether it stands in a block of its own or within a sentence, where arguments may be
/// left out.
struct Line {
    text: String,
    is_whole: bool,
}

/// Every command line of `tunica` in a page.
fn lines(page: &str) -> Vec<Line> {
    let mut found = Vec::new();
    let mut block: Option<&str> = None;
    for line in page.lines() {
        let line = line.trim();
        if let Some(language) = line.strip_prefix("```") {
            block = if block.is_some() { None } else { Some(language) };
            continue;
        }
        match block {
            Some("sh") => {
                let code = line.split(" #").next().unwrap_or_default();
                let parts = code.split([';', '|']).map(str::trim).filter(|part| part.starts_with("tunica "));
                found.extend(parts.map(|part| Line { text: part.to_owned(), is_whole: true }));
            }
            Some(_) => {}
            None => {
                let quoted = line.split('`').skip(1).step_by(2).filter(|text| text.starts_with("tunica "));
                found.extend(quoted.map(|text| Line { text: text.to_owned(), is_whole: false }));
            }
        }
    }
    found
}

fn guide() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/guide.md")).unwrap()
}

/// The block of the guide in this language that has this line.
fn block(guide: &str, language: &str, line: &str) -> String {
    let blocks = guide.split("```").skip(1).step_by(2).filter_map(|block| block.strip_prefix(language));
    let found = blocks.filter(|block| block.lines().any(|own| own.trim() == line));
    let found: Vec<&str> = found.collect();
    assert_eq!(found.len(), 1, "`{line}` in {found:?}");
    found[0].lines().map(|line| format!("{}\n", line.trim())).collect()
}

/// Installed as the guide says, in a copy of this host's files, enabled, and removed again.
#[test]
fn what_the_guide_installs_it_enables_and_removes() {
    let guide = guide();
    let here = tempfile::tempdir().unwrap();
    let (built, deploy) = (here.path().join("target/release"), here.path().join("deploy"));
    fs::create_dir_all(&built).unwrap();
    for name in ["tunicad", "tunica", "tunica-front"] {
        symlink(program(name).unwrap(), built.join(name)).unwrap();
    }
    symlink(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy"), deploy).unwrap();
    let configure = block(&guide, "sh", "systemctl enable --now tunicad");
    let mut steps = [
        block(&guide, "sh", "systemd-sysusers tunica.conf"),
        // There is no configuration here to look at.
        configure.split_inclusive('\n').filter(|line| line.starts_with("systemctl")).collect(),
        block(&guide, "sh", "systemctl reload tor"),
        block(&guide, "sh", "cargo build --release --package tunica-front --features arti"),
        "echo between; find layers/*/upper -name '*tunica*'; id -Gn tunica-front\n".to_owned(),
        block(&guide, "sh", "groupdel tunica"),
        "echo after; find layers/*/upper -name '*tunica*' ! -type c; getent passwd tunica-front || :; getent group tunica || :\n"
            .to_owned(),
    ]
    .concat();
    // What was built is there already, and no systemd runs that could start anything now.
    steps = steps.replace("cargo build", ": cargo build").replace(" --now", "");
    let script = format!(
        "set -e\nmount --make-rprivate /\nmkdir layers\nmount -t tmpfs tmpfs layers\n\
         for folder in usr etc var; do\n\
         mkdir -p layers/$folder/upper layers/$folder/work\n\
         mount -t overlay -o lowerdir=/$folder,upperdir=layers/$folder/upper,workdir=layers/$folder/work overlay /$folder\n\
         done\n\
         mount -t tmpfs tmpfs /sys/fs/bpf\nmkdir -p /sys/fs/bpf/tunica /etc/tunica /var/lib/tunica\n\
         nft add table inet tunica\n{steps}"
    );
    let mut shell = Command::new("unshare");
    shell.args(["--mount", "--net", "sh", "-c", &script]).current_dir(here.path());
    let ran = shell.env("SYSTEMD_OFFLINE", "1").stdin(Stdio::null()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    let (_, between) = out.split_once("between\n").unwrap_or_else(|| panic!("{out}{err}"));
    let (between, after) = between.split_once("after\n").unwrap_or_else(|| panic!("{out}{err}"));
    for made in [
        "usr/upper/bin/tunicad",
        "usr/upper/bin/tunica",
        "usr/upper/bin/tunica-front",
        "multi-user.target.wants/tunicad.service",
        "multi-user.target.wants/tunica-front.service",
        "sockets.target.wants/tunica-front.socket",
        "system/tunica-front.service.d",
        "system/tunica-front.socket.d",
    ] {
        assert!(between.lines().any(|line| line.ends_with(made)), "{made} is not there:\n{between}");
    }
    assert!(between.ends_with("tunica-front tunica\n"), "{between}");
    assert_eq!(after, "", "{err}");
}

#[test]
fn the_lines_of_torrc_are_those_of_the_guides_configuration() {
    let guide = guide();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tunica.toml");
    let shield = block(&guide, "toml", "allow = [\"198.51.100.7\"]");
    let ingress = block(&guide, "toml", "socket = \"/run/tunica-front/ingress.sock\"");
    fs::write(&file, shield + &ingress).unwrap();
    let mut tunica = Command::new(program("tunica").unwrap());
    let ran = tunica.args(["render", "torrc", "--config"]).arg(file).output().unwrap();
    // Quotes keep a name with a space in it together; this one has none.
    let rendered = String::from_utf8_lossy(&ran.stdout).replace(['"', '\\'], "");
    let torrc = block(&guide, "text", "HiddenServiceExportCircuitID haproxy");
    for line in torrc.lines().filter(|line| !line.is_empty()) {
        assert!(rendered.lines().any(|own| own == line), "{line} is not in:\n{rendered}");
    }
    // The socket that systemd holds, and the one that tor's profile must know.
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/tunica-front.socket");
    assert!(fs::read_to_string(unit).unwrap().contains("\nListenStream=/run/tunica-front/ingress.sock\n"));
    block(&guide, "sh", "echo '/run/tunica-front/ingress.sock rw,' >> /etc/apparmor.d/local/system_tor");
}

#[test]
fn every_command_line_is_understood() {
    let mut lab = Lab::new("guide").unwrap();
    lab.configure("mode = \"enforce\"", "").unwrap();
    lab.start().unwrap();
    lab.send(&null_segment(), 3).unwrap();
    lab.wait_for("an incident", |lab| Ok(lab.json(&["status"])?["incident"]["id"] == 1)).unwrap();
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let mut pages: Vec<_> =
        fs::read_dir(docs.join("runbooks")).unwrap().map(|entry| entry.unwrap().path()).collect();
    pages.push(docs.join("guide.md"));
    pages.sort();
    let (mut typed, mut faults) = (0, Vec::new());
    for page in pages {
        for line in lines(&fs::read_to_string(&page).unwrap()) {
            let mut text = line.text.replace("YOUR-ADDRESS", "203.0.113.9");
            for (placeholder, stands_for) in [
                ("ADDRESS", "203.0.113.9"),
                ("TARGET", "203.0.113.9"),
                ("RANGE", "203.0.113.0/24"),
                ("ID", "1"),
                ("TEXT", "text"),
                ("NAME", "name"),
            ] {
                text = text.replace(placeholder, stands_for);
            }
            // What writes files is not for here, and neither is what fills in itself.
            if text.starts_with("tunica init") || text.contains('<') || text.contains('$') {
                continue;
            }
            if text == "tunica top" {
                text.push_str(" --once --interval 0.2");
            }
            let arguments = text.strip_prefix("tunica ").unwrap();
            let script = format!(
                "set -- {arguments}; exec \"$TUNICA\" --config \"$FILE\" --socket \"$SOCKET\" \"$@\""
            );
            let ran = Command::new("sh")
                .args(["-c", &script])
                .env("TUNICA", program("tunica").unwrap())
                .env("FILE", lab.path("tunica.toml"))
                .env("SOCKET", lab.path("tunicad.sock"))
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&ran.stderr);
            let is_part = said.contains("required arguments were not provided")
                || (said.contains("<COMMAND>") && !said.contains("unrecognized"));
            let is_understood = match ran.status.code() {
                // Done; refused, because it is too early for it or done already; nothing there; not all is well here.
                Some(0 | 3 | 4 | 7 | 8) => true,
                Some(78) => arguments.starts_with("check"),
                Some(2) => !line.is_whole && is_part,
                Some(_) | None => false,
            };
            typed += 1;
            if !is_understood {
                faults.push(format!("{}: `{}` ends with {}: {said}", page.display(), line.text, ran.status));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(typed > 100, "only {typed} were found");
}

#[test]
fn the_ways_out_of_a_lockout_lead_out() {
    let mut lab = Lab::new("lockout").unwrap();
    lab.configure("mode = \"enforce\"", "").unwrap();
    lab.run_in_host(
        "nft",
        &["add table inet lab; add counter inet lab passed; \
           add chain inet lab behind { type filter hook prerouting priority -100; }; \
           add rule inet lab behind ip saddr 203.0.113.9 counter name passed"],
    )
    .unwrap();
    let passing = |lab: &Lab| {
        let before = lab.in_stack("passed").unwrap();
        lab.send(&null_segment(), 5).unwrap();
        lab.in_stack("passed").unwrap() - before
    };
    lab.start().unwrap();
    assert_eq!(passing(&lab), 0);
    let refused = lab.run_in_host("ip", &["link", "set", "dev", "h0", "xdp", "off"]).unwrap_err().to_string();
    assert!(refused.contains("Can't replace active BPF XDP link"), "{refused}");
    lab.must(&["bypass", "on", "--reason", "locked out"]).unwrap();
    assert_eq!(passing(&lab), 5);
    lab.must(&["bypass", "off"]).unwrap();

    // The daemon is stopped, and its filter stays until the pin goes.
    let link = lab.pin_directory().unwrap().join("link-h0");
    lab.end(Signal::SIGTERM).unwrap();
    assert_eq!(passing(&lab), 0);
    fs::remove_file(&link).unwrap();
    assert_eq!(passing(&lab), 5);
    lab.start().unwrap();
    assert_eq!(passing(&lab), 0);
    lab.end(Signal::SIGTERM).unwrap();
    lab.run_in_host("bpftool", &["link", "detach", "pinned", link.to_str().unwrap()]).unwrap();
    assert_eq!(passing(&lab), 5);

    // Where nftables stands in, its table stays likewise.
    lab.configure("mode = \"enforce\"\nattach = \"nftables\"", "").unwrap();
    lab.start().unwrap();
    lab.end(Signal::SIGTERM).unwrap();
    assert_eq!(passing(&lab), 0);
    lab.run_in_host("nft", &["delete", "table", "inet", "tunica"]).unwrap();
    assert_eq!(passing(&lab), 5);
}
