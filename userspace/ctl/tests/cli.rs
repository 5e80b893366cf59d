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
