//! What holds of circuits, whoever hosts the onion service: rows that are asserted on C tor before the ingress, and on the
//! ingress that hosts the service with Arti.

use std::{
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{
    ingress::{Backend, answers, get, read_answer},
    lab::Lab,
    testnet::Client,
};

/// Lines of `[circuits]` that the rows go by: at most four streams of a circuit at once, and the third violation bans.
pub const CIRCUITS: &str = "profile = \"web\"\nmax_concurrent_per_circuit = 4\nban_threshold = 3";

/// Lines of `[circuits]` that [`rotate`] goes by.
pub const ROTATION: &str = "profile = \"web\"\ncircuit_health_interval_secs = 1\nmax_circuit_age_secs = 10";

/// A stream that is neither served nor refused for so long hangs; a client waits 15 s.
const HANGS: Duration = Duration::from_secs(12);

/// Where the rows are asserted.
pub struct Stage<'a> {
    /// The daemon.
    pub lab: &'a mut Lab,
    /// A client of the Tor network.
    pub client: &'a Client,
    /// The service's address.
    pub onion: &'a str,
    /// What stands behind the ingress.
    pub backend: &'a Backend,
}

/// What holds of a stage.
type Row = fn(&mut Stage<'_>) -> Result<()>;

/// Each sentence, and what shows that it holds.
const ROWS: [(&str, Row); 6] = [
    ("streams of one circuit are one row, and those of another are another", one_row),
    ("a backend knows circuits apart, and clients cannot say theirs", told_apart),
    ("a circuit has its limit, and another does not feel it", limited),
    ("a circuit that breaks its limits is banned and closed, and another does not feel it", banned_by_policy),
    ("an operator's word closes the circuit, and nothing else comes of it", closed_by_operator),
    ("an operator's ban closes the circuit, and its visitor comes back by another", banned_by_operator),
];

/// Asserts every row.
///
/// # Errors
/// Names the first that does not hold.
pub fn hold(stage: &mut Stage<'_>) -> Result<()> {
    for (sentence, row) in ROWS {
        stage.lab.wait_for("the streams of the row before to end", |lab| Ok(open_rows(lab)?.is_empty()))?;
        row(stage).with_context(|| format!("it does not hold that {sentence}"))?;
    }
    Ok(())
}

/// Asserts that a circuit which has lived for long enough is marked and not cut while it carries a stream, and closed once it
/// carries none, so that its visitor comes back by another. Returns its number.
///
/// # Errors
/// Says what does not hold.
pub fn rotate(stage: &mut Stage<'_>) -> Result<String> {
    let closed = "tunica_circuits_closed_total{refusal=\"circuit_aged\"}";
    let before = stage.lab.metric(closed)?.context("no such metric")?;
    let (mut stream, user) = stage.open()?;
    let circuit = stage.number_of(1)?;
    let marked = |lab: &Lab, word: &str| -> Result<bool> {
        let said = lab.json(&["explain", "circuit", &circuit])?;
        Ok(said.pointer("/row/marked").is_some_and(|marked| marked == word))
    };
    stage.lab.wait_for("the mark", |lab| {
        Ok(marked(lab, "circuit_aged")? && lab.metric("tunica_circuits_marked")? == Some(1.0))
    })?;
    let shown = stage.lab.must(&["circuits"])?;
    // As it is wrapped at its columns.
    let unwrapped = |said: &str| said.split_whitespace().collect::<Vec<_>>().join(" ");
    ensure!(shown.contains("normal, old") && unwrapped(&shown).contains("1 circuit is marked"), "{shown}");
    let explained = unwrapped(&stage.lab.must(&["explain", "circuit", &circuit])?);
    for part in ["marked as circuit_aged, and closed once it carries no", "ms for it", "of 10 seconds since"]
    {
        ensure!(explained.contains(part), "{part} in {explained}");
    }
    // The ingress examines it each second.
    let examined =
        stage.lab.json(&["circuits"])?.pointer("/digest/circuits/0/age_seconds").and_then(Value::as_u64);
    let examined = examined.context("no age")?;
    stage.lab.wait_for("further examinations", |lab| {
        let age = lab.json(&["circuits"])?.pointer("/digest/circuits/0/age_seconds").and_then(Value::as_u64);
        Ok(age.is_some_and(|age| age > examined + 3))
    })?;
    ensure!(answers(&mut stream), "a stream of an old circuit was cut");
    ensure!(stage.lab.metric(closed)? == Some(before), "an old circuit with a stream was closed");
    drop(stream);
    stage.lab.wait_for("the end of the old circuit", |lab| Ok(lab.metric(closed)? == Some(before + 1.0)))?;
    let mut again = stage.comes_back(&user, &circuit)?;
    ensure!(answers(&mut again), "the visitor is not served by the next circuit");
    let shown = stage.lab.must(&["circuits"])?;
    ensure!(unwrapped(&shown).contains("closed circuit_aged"), "{shown}");
    Ok(circuit)
}

/// A stream of a fresh circuit that is served, and the SOCKS user whose circuit it is.
///
/// # Errors
/// If none of four is: circuits of a small network fail now and then.
pub fn open(client: &Client, onion: &str) -> Result<(TcpStream, String)> {
    for _ in 0..4 {
        let (mut stream, user) = client.connect_afresh(onion, 80)?;
        if answers(&mut stream) {
            return Ok((stream, user));
        }
    }
    bail!("no circuit carries a request")
}

/// A stream of a visitor whose circuit was closed, as soon as one is served.
///
/// The visitor's tor may not know of the end: where two circuits of a connection end at once, a relay (tor 0.4.9,
/// `circuitmux_append_destroy_cell`) sends the second DESTROY with the next cell of that connection, which comes late in a
/// network without other traffic. Streams then hang, and the visitor asks for another circuit as people do. One who is refused
/// does not.
///
/// # Errors
/// If none of six attempts is served, or tor does not take the wish.
pub fn comes_back(client: &Client, onion: &str, user: &str) -> Result<TcpStream> {
    for _ in 0..6 {
        let begun = Instant::now();
        if let Ok(mut stream) = client.connect(onion, 80, user)
            && answers(&mut stream)
        {
            return Ok(stream);
        }
        if begun.elapsed() > HANGS {
            client.forget()?;
        }
    }
    bail!("the visitor is not served by another circuit")
}

/// A circuit with open streams.
#[derive(Debug)]
struct Open {
    circuit: String,
    streams: u64,
}

/// Circuits that have open streams.
fn open_rows(lab: &Lab) -> Result<Vec<Open>> {
    let answer = lab.json(&["circuits", "--limit", "100"])?;
    let rows = answer.pointer("/digest/circuits").and_then(Value::as_array).context("no rows")?;
    let of = |row: &Value| {
        let circuit = row.get("circuit")?.as_u64()?.to_string();
        Some(Open { circuit, streams: row.get("open")?.as_u64()? })
    };
    Ok(rows.iter().filter_map(of).filter(|row| row.streams > 0).collect())
}

/// Whether the daemon knows that a circuit is banned, by the operator or by its policy.
fn is_banned(lab: &Lab, circuit: &str) -> Result<bool> {
    let answer = lab.json(&["explain", "circuit", circuit])?;
    let by_operator = answer.get("ban").is_some_and(|ban| !ban.is_null());
    Ok(by_operator || answer.pointer("/row/state").is_some_and(|state| state == "banned"))
}

impl Stage<'_> {
    fn open(&self) -> Result<(TcpStream, String)> {
        open(self.client, self.onion)
    }

    fn another(&self, user: &str) -> Result<TcpStream> {
        self.client.connect(self.onion, 80, user)
    }

    /// The number of the one circuit with so many open streams.
    fn number_of(&mut self, streams: u64) -> Result<String> {
        let find = |lab: &Lab| -> Result<Option<String>> {
            Ok(open_rows(lab)?.into_iter().find(|row| row.streams == streams).map(|row| row.circuit))
        };
        self.lab.wait_for("the circuit's row", |lab| Ok(find(lab)?.is_some()))?;
        find(self.lab)?.context("the row has gone")
    }

    fn is_banned(&mut self, circuit: &str) -> Result<()> {
        self.lab.wait_for("the ban", |lab| is_banned(lab, circuit))
    }

    /// The visitor's next stream comes by another circuit than `banned`, which is served.
    ///
    /// # Errors
    /// If it does not.
    pub fn comes_back(&mut self, user: &str, banned: &str) -> Result<TcpStream> {
        let stream = comes_back(self.client, self.onion, user)?;
        // What the ingress says is up to a second old.
        self.lab.wait_for("the end of the banned circuit's streams", |lab| {
            let open = open_rows(lab)?;
            Ok(!open.is_empty() && open.iter().all(|row| row.circuit != banned))
        })?;
        Ok(stream)
    }
}

fn one_row(stage: &mut Stage<'_>) -> Result<()> {
    let (mut first, user) = stage.open()?;
    let (mut other, _) = stage.open()?;
    let mut second = stage.another(&user)?;
    ensure!(answers(&mut second) && answers(&mut first) && answers(&mut other), "all three are served");
    let (two, one) = (stage.number_of(2)?, stage.number_of(1)?);
    ensure!(two != one, "two circuits have one number");
    let shown = stage.lab.must(&["circuits"])?;
    ensure!(shown.contains(&two) && shown.contains(&one), "{shown}");
    Ok(())
}

fn told_apart(stage: &mut Stage<'_>) -> Result<()> {
    let word = |stream: &mut TcpStream| -> Result<String> {
        use std::io::Write as _;
        let forged = get("/").replacen("\r\n", "\r\nX-Onion-Circuit: forged\r\n", 1);
        stream.write_all(forged.as_bytes())?;
        let mut answer = Vec::new();
        read_answer(stream, &mut answer)?;
        let text = String::from_utf8_lossy(&answer).to_ascii_lowercase();
        let words: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("x-onion-circuit:")).collect();
        let [word] = words[..] else { bail!("{text}") };
        Ok(word.trim().to_owned())
    };
    let (mut first, user) = stage.open()?;
    let mut second = stage.another(&user)?;
    let (mut other, _) = stage.open()?;
    let (one, same, another) = (word(&mut first)?, word(&mut second)?, word(&mut other)?);
    ensure!(one == same && one != another && one != "forged", "{one}, {same}, {another}");
    ensure!(
        stage.backend.requests().iter().all(|request| !request.contains("forged")),
        "a client's word went on"
    );
    Ok(())
}

/// A circuit with as many streams as it may have, and whose it is.
fn four(stage: &mut Stage<'_>) -> Result<(Vec<TcpStream>, String)> {
    let (first, user) = stage.open()?;
    let mut streams = vec![first];
    for _ in 1..4 {
        streams.push(stage.another(&user)?);
    }
    ensure!(streams.iter_mut().all(answers), "four streams are within the limit");
    Ok((streams, user))
}

fn limited(stage: &mut Stage<'_>) -> Result<()> {
    let (mut streams, user) = four(stage)?;
    let (mut other, _) = stage.open()?;
    // The ingress may close before tor has told the client that it was connected.
    let is_refused = stage.another(&user).map_or(true, |mut stream| !answers(&mut stream));
    ensure!(is_refused, "the fifth is beyond it");
    ensure!(streams.iter_mut().all(answers), "the four go on");
    ensure!(answers(&mut other), "another circuit must not feel it");
    Ok(())
}

fn banned_by_policy(stage: &mut Stage<'_>) -> Result<()> {
    for _ in 0..4 {
        let (mut streams, user) = four(stage)?;
        let (mut other, _) = stage.open()?;
        let circuit = stage.number_of(4)?;
        if !violate(stage, &user, &circuit)? {
            drop((streams, other));
            stage.lab.wait_for("the end of all streams", |lab| Ok(open_rows(lab)?.is_empty()))?;
            continue;
        }
        ensure!(!streams.iter_mut().any(answers), "every stream of the banned circuit must end");
        ensure!(answers(&mut other), "another circuit must not feel it");
        stage.comes_back(&user, &circuit)?;
        return Ok(());
    }
    bail!("the client's tor left each circuit before it was banned")
}

/// Asks for a fifth stream until the circuit is banned, three times at least. `false` if the client's tor takes another circuit
/// for it, as it does where the answer is late.
fn violate(stage: &Stage<'_>, user: &str, circuit: &str) -> Result<bool> {
    // What the ingress says is up to a second old, and later on a full machine.
    let becomes_banned = || -> Result<bool> {
        let deadline = Instant::now() + Duration::from_secs(5);
        while !is_banned(stage.lab, circuit)? {
            if Instant::now() > deadline {
                return Ok(false);
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(true)
    };
    for count in 1..=9 {
        // Refused, or closed with the circuit, or it did not come so far.
        let is_served = stage.another(user).is_ok_and(|mut stream| answers(&mut stream));
        if is_served || (count % 3 == 0 && becomes_banned()?) {
            break;
        }
    }
    becomes_banned()
}

fn closed_by_operator(stage: &mut Stage<'_>) -> Result<()> {
    let (mut first, user) = stage.open()?;
    let (mut other, _) = stage.open()?;
    let mut second = stage.another(&user)?;
    ensure!(answers(&mut first) && answers(&mut second), "both are served");
    let circuit = stage.number_of(2)?;
    stage.lab.must(&["circuit", "close", &circuit, "--dry-run"])?;
    ensure!(answers(&mut first), "a dry run closes nothing");
    stage.lab.must(&["circuit", "close", &circuit])?;
    stage.lab.wait_for("the end of its streams", |_| Ok(!answers(&mut first)))?;
    ensure!(!answers(&mut second), "the circuit ends with all its streams");
    ensure!(answers(&mut other), "another circuit must not feel it");
    stage.comes_back(&user, &circuit)?;
    let explained = stage.lab.json(&["explain", "circuit", &circuit])?;
    ensure!(explained.get("ban").is_none_or(Value::is_null), "it is not banned: {explained}");
    Ok(())
}

fn banned_by_operator(stage: &mut Stage<'_>) -> Result<()> {
    let (mut first, user) = stage.open()?;
    let (mut other, _) = stage.open()?;
    let mut second = stage.another(&user)?;
    ensure!(answers(&mut first) && answers(&mut second), "both are served");
    let circuit = stage.number_of(2)?;
    stage.lab.must(&["circuit", "ban", &circuit, "--for", "1h", "--dry-run"])?;
    ensure!(answers(&mut first), "a dry run bans nobody");
    stage.lab.must(&["circuit", "ban", &circuit, "--for", "1h"])?;
    stage.is_banned(&circuit)?;
    ensure!(!answers(&mut first) && !answers(&mut second), "both streams of the banned circuit must end");
    ensure!(answers(&mut other), "another circuit must not feel it");
    stage.comes_back(&user, &circuit)?;
    let shown = stage.lab.must(&["circuits"])?;
    ensure!(shown.contains("banned"), "{shown}");
    Ok(())
}
