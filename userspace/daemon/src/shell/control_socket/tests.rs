//! The socket over real connections.

use std::{
    env,
    io::{Read, Write},
    os::unix::{net::UnixStream as StdStream, process::CommandExt},
    process::{Command, Stdio},
};

use nix::unistd::getegid;
use tokio::task::JoinHandle;
use tunica_api::{
    request::Reload,
    view::{Bans, Done},
};

use super::*;
use crate::metrics::Metrics;

const NOBODY: u32 = 65_534;

/// The name of this process's group.
fn own_group() -> String {
    Group::from_gid(getegid()).unwrap().unwrap().name
}

struct Served {
    path: PathBuf,
    metrics: Metrics,
    server: JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn served(requests: ControlSenders) -> Served {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tunicad.sock");
    let socket = listen(&path, &own_group()).unwrap();
    let metrics = Metrics::new("abc").unwrap();
    let server = tokio::spawn(serve(socket, requests, metrics.control()));
    Served { path, metrics, server, _directory: directory }
}

/// Serves with a loop that answers every request: reads with no bans, changes with the verb.
fn answered() -> Served {
    let (senders, mut queues) = queues();
    tokio::spawn(async move {
        while let Some(ControlRequest { request, caller, reply, span }) = tokio::select! {
            change = queues.changes.recv() => change,
            read = queues.reads.recv() => read,
        } {
            let _entered = span.entered();
            let answer = if request.is_report() {
                let changes = vec![format!("{} {}", caller.uid, caller.is_operator)];
                Answer::Done(Done { dry_run: false, changes, undo: None })
            } else if request.is_read_only() {
                Answer::Bans(Bans { bans: Vec::new() })
            } else {
                let changes = vec![request.verb().to_owned()];
                Answer::Done(Done { dry_run: false, changes, undo: None })
            };
            // Whoever asked may have gone.
            let _ = reply.send(answer);
        }
    });
    served(senders)
}

fn report() -> Request {
    Request::Report(tunica_api::request::Report {
        source: "192.0.2.7".parse().unwrap(),
        reason: String::new(),
        service: None,
        dry_run: false,
    })
}

/// Sends `bytes`, ends the sending side, and reads the answer.
async fn exchange(path: &Path, bytes: &[u8]) -> Answer {
    let mut stream = UnixStream::connect(path).await.unwrap();
    // The server may answer and close before it has read all.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut line = Vec::new();
    stream.read_to_end(&mut line).await.unwrap();
    assert_eq!(line.pop(), Some(b'\n'));
    wire::read_answer(&line).unwrap()
}

async fn ask_for(path: &Path, request: &Request) -> Answer {
    exchange(path, &wire::write_request(request).unwrap()).await
}

fn assert_refused(answer: &Answer, code: RefusedCode, part: &str) {
    let Answer::Refused(refused) = answer else {
        panic!("not refused: {answer:?}");
    };
    assert_eq!(refused.code, code, "{}", refused.message);
    assert!(refused.message.contains(part), "{}", refused.message);
}

#[tokio::test]
async fn requests_are_answered_and_counted() {
    let served = answered();
    let bans = Answer::Bans(Bans { bans: Vec::new() });
    assert_eq!(ask_for(&served.path, &Request::BanList {}).await, bans);
    let done = Done { dry_run: false, changes: vec!["bypass_off".to_owned()], undo: None };
    assert_eq!(ask_for(&served.path, &Request::BypassOff {}).await, Answer::Done(done));
    // A line may end with the connection instead of a newline.
    let line = wire::write_request(&Request::BanList {}).unwrap();
    assert_eq!(exchange(&served.path, line.trim_ascii_end()).await, bans);
    let text = served.metrics.render().unwrap();
    for series in [
        "tunica_control_requests_total{result=\"ok\",verb=\"ban_list\"} 2",
        "tunica_control_requests_total{result=\"ok\",verb=\"bypass_off\"} 1",
    ] {
        assert!(text.contains(series), "{series} in {text}");
    }
}

#[tokio::test]
async fn lines_that_are_no_request_are_refused_at_their_byte() {
    let served = answered();
    let mut long = vec![b' '; MAX_REQUEST_BYTES];
    long.push(b'\n');
    let mut longest = wire::write_request(&Request::BanList {}).unwrap();
    longest.pop();
    longest.resize(MAX_REQUEST_BYTES - 1, b' ');
    longest.push(b'\n');
    for (line, part) in [
        (b"status\n".as_slice(), "byte 1 of line 1"),
        (b"{\"schema\":1,\"verb\":\"reboot\"}\n", "byte "),
        (b"{\"schema\":1,\"verb\":\"status\"", "byte "),
        (b"{\"schema\":2,\"verb\":\"status\"}\n", "schema 2"),
        (b"\xff\xfe\n", "byte 1 of line 1"),
        (b"\n", "byte "),
        (long.as_slice(), "byte 65537: a request has at most 65536 bytes"),
    ] {
        assert_refused(&exchange(&served.path, line).await, RefusedCode::Invalid, part);
    }
    assert_eq!(exchange(&served.path, &longest).await, Answer::Bans(Bans { bans: Vec::new() }));
    let text = served.metrics.render().unwrap();
    assert!(
        text.contains("tunica_control_requests_total{result=\"refused\",verb=\"unreadable\"} 7"),
        "{text}"
    );
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_the_server_well() {
    let served = answered();
    for bytes in [b"".as_slice(), b"{\"schema\":1,\"verb\":\"ban_list\"}\n"] {
        let mut stream = UnixStream::connect(&served.path).await.unwrap();
        stream.write_all(bytes).await.unwrap();
    }
    ask_for(&served.path, &Request::BanList {}).await;
}

#[tokio::test]
async fn a_loop_that_hangs_and_a_client_that_dawdles_are_given_up() {
    // Nobody takes the requests.
    let (senders, _queues) = queues();
    let served = served(senders);
    let dawdle = async {
        let mut stream = UnixStream::connect(&served.path).await.unwrap();
        stream.write_all(b"{\"schema\":1").await.unwrap();
        let mut line = Vec::new();
        stream.read_to_end(&mut line).await.unwrap();
        wire::read_answer(line.trim_ascii_end()).unwrap()
    };
    let (dawdler, status, bypass) = tokio::join!(
        dawdle,
        ask_for(&served.path, &Request::Status {}),
        ask_for(&served.path, &Request::BypassOff {}),
    );
    assert_refused(&dawdler, RefusedCode::Invalid, "byte 12: the line did not end within 5 seconds");
    assert_refused(&status, RefusedCode::Failed, "the event loop does not answer: nothing was changed");
    assert_refused(&bypass, RefusedCode::Failed, "whether the change was made is unknown");
}

#[tokio::test]
async fn a_loop_that_ended_is_named_at_once() {
    let (senders, queues) = queues();
    drop(queues);
    let served = served(senders);
    let answer = ask_for(&served.path, &Request::Status {}).await;
    assert_refused(&answer, RefusedCode::Failed, "the event loop does not answer");
    let text = served.metrics.render().unwrap();
    assert!(text.contains("tunica_control_requests_total{result=\"failed\",verb=\"status\"} 1"), "{text}");
}

const STRANGER: &str = "TUNICA_TEST_CONTROL_SOCKET";

/// Runs itself as a child of another user, which asks for something to read and for a change.
#[tokio::test]
async fn strangers_may_read_and_change_nothing() {
    if let Some(path) = env::var_os(STRANGER) {
        for request in [Request::BanList {}, Request::BypassOff {}, report()] {
            let mut stream = StdStream::connect(&path).unwrap();
            stream.write_all(&wire::write_request(&request).unwrap()).unwrap();
            let mut line = String::new();
            stream.read_to_string(&mut line).unwrap();
            println!("answer {line}");
        }
        return;
    }
    let served = answered();
    // A user of a group that may connect. Only root can start a child as another user; whoever else runs this test is
    // the daemon's own user, who may do all.
    let is_root = geteuid().is_root();
    let directory = tempfile::tempdir().unwrap();
    for (path, mode) in
        [(directory.path(), 0o755), (directory::of(&served.path), 0o755), (served.path.as_path(), 0o666)]
    {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let program = directory.path().join("stranger");
    // Not by this process: what is open for writing in a child of another test would not run (ETXTBSY, execve(2)).
    let copy = Command::new("install").arg(env::current_exe().unwrap()).arg(&program).output().unwrap();
    assert!(copy.status.success(), "{copy:?}");
    let mut child = Command::new(&program);
    child.args([
        "--exact",
        "--nocapture",
        "shell::control_socket::tests::strangers_may_read_and_change_nothing",
    ]);
    child.env(STRANGER, &served.path).current_dir("/").stdout(Stdio::piped());
    if is_root {
        child.uid(NOBODY).gid(NOBODY);
    }
    let output = tokio::task::spawn_blocking(move || child.output()).await.unwrap().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let answers: Vec<Answer> = output
        .lines()
        .filter_map(|line| line.split_once("answer ").map(|(_, line)| line))
        .map(|line| wire::read_answer(line.as_bytes()).unwrap())
        .collect();
    assert_eq!(answers.len(), 3, "{output}");
    assert_eq!(answers[0], Answer::Bans(Bans { bans: Vec::new() }));
    // Whether a report counts is not for the socket to say, but it says who made it.
    let who = if is_root { format!("{NOBODY} false") } else { format!("{} true", geteuid()) };
    assert_eq!(answers[2], Answer::Done(Done { dry_run: false, changes: vec![who], undo: None }));
    if is_root {
        assert_refused(&answers[1], RefusedCode::Forbidden, "nothing was changed");
    } else {
        assert!(matches!(answers[1], Answer::Done(_)), "{:?}", answers[1]);
    }
}

#[test]
fn who_may_do_what() {
    let (read, change) = (Request::Status {}, Request::Reload(Reload::default()));
    for (peer, own, request, expected) in [
        (Some(0), 500, &change, true),
        (Some(500), 500, &change, true),
        (Some(501), 500, &change, false),
        (Some(501), 500, &read, true),
        (None, 500, &change, false),
        (Some(501), 500, &report(), true),
        (None, 500, &read, true),
        (Some(500), 0, &change, false),
    ] {
        assert_eq!(may(peer, own, request), expected, "{peer:?} {own} {}", request.verb());
    }
}

#[tokio::test]
async fn the_file_is_the_groups_and_goes_with_the_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let mode = || fs::metadata(&path).unwrap().mode() & 0o7777;
    let socket = listen(&path, &own_group()).unwrap();
    assert_eq!((mode(), fs::metadata(&path).unwrap().gid()), (0o660, getegid().as_raw()));
    drop(socket);
    assert!(!path.exists());
    let socket = listen(&path, "no-such-group").unwrap();
    assert_eq!(mode(), 0o600);
    // What took the file's name meanwhile is not ours to remove.
    fs::remove_file(&path).unwrap();
    fs::write(&path, b"other").unwrap();
    drop(socket);
    assert_eq!(fs::read(&path).unwrap(), b"other");
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    drop(StdListener::bind(&path).unwrap());
    assert!(path.exists());
    let first = listen(&path, &own_group()).unwrap();
    let error = listen(&path, &own_group()).unwrap_err();
    assert!(matches!(error, BindError::InUse { .. }), "{error}");
    StdStream::connect(&path).unwrap();
    drop(first);
    let claim = directory::claim(directory.path()).unwrap();
    let error = listen(&path, &own_group()).unwrap_err();
    assert!(matches!(error, BindError::InUse { .. }), "{error}");
    drop(claim);
    listen(&path, &own_group()).unwrap();
}

#[tokio::test]
async fn what_is_in_the_way_is_named_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, b"mine").unwrap();
    let group = own_group();
    let message = listen(&file, &group).unwrap_err().to_string();
    assert!(message.contains("is no socket: it is left alone"), "{message}");
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    let missing = directory.path().join("none");
    let message = listen(&missing.join("s"), &group).unwrap_err().to_string();
    assert!(message.contains(&format!("install -d -m 0750 -g tunica {}", missing.display())), "{message}");
    let error = listen(&file.join("s"), &group).unwrap_err();
    assert!(matches!(error, BindError::Directory { .. }), "{error}");
    let error = listen(Path::new("/proc/s"), &group).unwrap_err();
    assert!(matches!(error, BindError::Socket { doing: "make", .. }), "{error}");
}
