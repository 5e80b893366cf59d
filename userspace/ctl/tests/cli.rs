//! The command line without a daemon: transcripts under `tests/cmd`.

use std::{fs, process::Command};

#[test]
fn transcripts() {
    trycmd::TestCases::new().case("tests/cmd/*.trycmd");
}

/// `doctor` with neither a daemon nor its executable within reach, which a build directory cannot promise.
#[test]
fn doctor_without_a_daemon_says_what_is_missing() {
    // A link, not a copy: no other thread's child can hold the executable open for writing.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let alone = directory.path().join("tunica");
    fs::hard_link(env!("CARGO_BIN_EXE_tunica"), &alone).unwrap();
    let output = Command::new(&alone)
        .args(["doctor", "--socket", "no.sock"])
        .current_dir(directory.path())
        .env("PATH", directory.path())
        .output()
        .unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(6), "{message}");
    assert!(output.stdout.is_empty());
    for part in ["tunicad is not running", "no.sock", "Its preflight cannot be run either (tunicad: "] {
        assert!(message.contains(part), "{message}");
    }
}

/// Where the ingress hosts the onion service there is nothing that tor could connect to.
#[test]
fn there_are_no_lines_for_tor_where_the_ingress_hosts_the_service() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tunica.toml");
    let render = |enabled: bool| {
        let text = format!(
            "[shield]\ninterfaces = [\"eth0\"]\n[ingress]\nenabled = true\n[arti]\nenabled = {enabled}\n"
        );
        fs::write(&file, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tunica"));
        command.args(["render", "torrc", "--config"]).arg(&file).output().unwrap()
    };
    let refused = render(true);
    let message = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(78), "{message}");
    assert!(refused.stdout.is_empty());
    for part in ["arti.enabled is true", "never answers", "docs/guide.md"] {
        assert!(message.contains(part), "{message}");
    }
    let rendered = render(false);
    assert_eq!(rendered.status.code(), Some(0), "{}", String::from_utf8_lossy(&rendered.stderr));
    assert!(String::from_utf8(rendered.stdout).unwrap().contains("HiddenServicePort"));
}

/// A reader that went away early (`tunica ban list | head`) is no failure.
#[test]
fn a_closed_pipe_is_no_failure() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_tunica"))
        .args(["init", "--interface", "eth0", "--output", "-"])
        .stdout(writer)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}
