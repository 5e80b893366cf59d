//! Files that are read, files that are refused, and what is made from the table of keys.
//!
//! A new case is two files and no code: `good/NAME.toml` with `good/NAME.txt` (the settings that differ from their
//! defaults, then the warnings), or `bad/NAME.toml` with `bad/NAME.txt` (the problems).

#![expect(clippy::unwrap_used, reason = "a test that cannot read its rows has failed")]

use std::{fs, path::Path};

use proptest::{prelude::*, sample::Index};
use tunica_common::{
    policy::{DEFAULT_ALLOW, DEFAULT_BANS},
    verdict::Verdict,
};
use tunica_config::{
    Attach, Config, LogFormat, LogLevel, Mode, OnStale, REFERENCE, ReadFileError, example, read, read_file,
    reference_markdown,
};

const MINIMAL: &str = "[shield]\ninterfaces = [\"eth0\"]\n";

/// Every setting in force as its key and its value in TOML; `None` where it is not set.
fn settings(config: &Config) -> Vec<(&'static str, Option<String>)> {
    fn text(value: impl ToString) -> Option<String> {
        Some(format!("{:?}", value.to_string()))
    }
    fn plain(value: impl ToString) -> Option<String> {
        Some(value.to_string())
    }
    fn off(value: Option<impl ToString>) -> Option<String> {
        Some(value.map_or_else(|| "0".to_owned(), |value| value.to_string()))
    }
    fn part(part: tunica_core::circuit_policy::Ratio) -> Option<String> {
        Some(format!("{:?}", f64::from(part.ten_thousandths()) / 10_000.0))
    }
    fn list(values: impl Iterator<Item = Option<String>>) -> Option<String> {
        Some(format!("[{}]", values.map(Option::unwrap).collect::<Vec<_>>().join(", ")))
    }
    fn labels(verdicts: &[Verdict]) -> Option<String> {
        list(verdicts.iter().map(|verdict| text(verdict.label())))
    }
    let Config {
        shield,
        bans,
        evidence,
        tor,
        ingress,
        arti,
        circuits,
        load,
        sybil,
        haproxy,
        http,
        control,
        ledger,
        log,
        ..
    } = config;
    vec![
        ("shield.interfaces", list(shield.interfaces.iter().map(text))),
        ("shield.mode", text(shield.mode)),
        ("shield.allow", list(shield.allow.iter().map(text))),
        ("shield.attach", text(shield.attach)),
        ("shield.fallback", text(shield.fallback)),
        ("shield.on_stale", text(shield.on_stale)),
        ("shield.stale_after_seconds", plain(shield.stale_after.as_secs())),
        (
            "shield.first_attach_confirm_seconds",
            shield.first_attach_confirm.and_then(|length| plain(length.as_secs())),
        ),
        ("shield.pin_path", text(shield.pin_path.display())),
        ("shield.lockdown", plain(shield.lockdown)),
        ("shield.syn.enabled", plain(shield.syn.enabled)),
        ("shield.syn.per_source_per_second", plain(shield.syn.per_source_per_second)),
        ("shield.syn.burst", plain(shield.syn.burst)),
        ("shield.syn.escalate_after", plain(shield.syn.escalate_after)),
        ("shield.port_syn.enabled", plain(shield.port_syn.enabled)),
        ("shield.port_syn.per_second", plain(shield.port_syn.per_second)),
        ("shield.port_syn.burst", plain(shield.port_syn.burst)),
        ("shield.cookies.enabled", plain(shield.cookies.enabled)),
        ("shield.cookies.manage_syncookies", plain(shield.cookies.manage_syncookies)),
        ("shield.cookies.trickle_per_second", plain(shield.cookies.trickle_per_second)),
        ("shield.cookies.hold_seconds", plain(shield.cookies.hold.as_secs())),
        ("shield.no_socket.enabled", plain(shield.no_socket.enabled)),
        ("shield.no_socket.host_per_second", plain(shield.no_socket.host_per_second)),
        ("shield.no_socket.per_source_per_second", plain(shield.no_socket.per_source_per_second)),
        ("shield.icmp.enabled", plain(shield.icmp.enabled)),
        ("shield.icmp.per_source_per_second", plain(shield.icmp.per_source_per_second)),
        ("shield.icmp.burst", plain(shield.icmp.burst)),
        ("shield.icmp.host_per_second", plain(shield.icmp.host_per_second)),
        ("shield.icmp.ceiling_per_second", plain(shield.icmp.ceiling_per_second)),
        ("shield.ports.open", list(shield.ports.open.iter().map(text))),
        ("shield.ports.new_connections", list(shield.ports.new_connections.iter().map(text))),
        ("shield.ports.udp", list(shield.ports.udp.iter().map(text))),
        ("shield.nft.drop_invalid", plain(shield.nft.drop_invalid)),
        ("shield.sanity.off", labels(&shield.sanity.off)),
        ("shield.uninspected.drop", labels(&shield.uninspected.drop)),
        ("shield.tables.bans", plain(shield.tables.bans)),
        ("shield.tables.cidrs", plain(shield.tables.cidrs)),
        ("shield.tables.allow", plain(shield.tables.allow)),
        ("shield.events.per_second", plain(shield.events.per_second)),
        ("shield.log.enable_logging", plain(shield.log.enable_logging)),
        ("shield.log.lines_per_minute", plain(shield.log.lines_per_minute)),
        ("bans.ladder_seconds", list(bans.ladder.iter().map(|rung| plain(rung.as_secs())))),
        ("bans.forgive_after_seconds", plain(bans.forgive_after.as_secs())),
        ("evidence.handshakes", plain(evidence.handshakes)),
        ("evidence.connections_per_second", plain(evidence.connections_per_second)),
        ("evidence.burst", plain(evidence.burst)),
        ("evidence.ban_threshold", plain(evidence.ban_threshold)),
        ("evidence.window_seconds", plain(evidence.window.as_secs())),
        ("evidence.reporters", list(evidence.reporters.iter().map(text))),
        ("evidence.report_window_seconds", plain(evidence.report_window.as_secs())),
        ("tor.user", tor.user.as_ref().and_then(text)),
        ("tor.scan_every_seconds", plain(tor.scan_every.as_secs())),
        ("tor.keep_seconds", plain(tor.keep.as_secs())),
        ("tor.control", tor.control.as_ref().and_then(text)),
        ("tor.control_cookie_file", tor.control_cookie_file.as_ref().and_then(|path| text(path.display()))),
        (
            "tor.control_password_file",
            tor.control_password_file.as_ref().and_then(|path| text(path.display())),
        ),
        ("tor.metrics", tor.metrics.and_then(text)),
        ("ingress.enabled", plain(ingress.enabled)),
        ("ingress.start_front", plain(ingress.start_front)),
        ("ingress.user", text(&ingress.user)),
        ("ingress.listen", text(ingress.listen)),
        ("ingress.socket", ingress.socket.as_ref().and_then(|path| text(path.display()))),
        ("ingress.gate", text(ingress.gate)),
        ("ingress.protocol", text(ingress.protocol)),
        ("ingress.backends", list(ingress.backends.iter().map(text))),
        ("ingress.sticky", plain(ingress.sticky)),
        ("ingress.health_path", text(&ingress.health_path)),
        ("ingress.health_every_seconds", plain(ingress.health_every.as_secs())),
        ("ingress.maintenance_page", ingress.maintenance_page.as_ref().and_then(|path| text(path.display()))),
        ("ingress.maxconn", plain(ingress.maxconn)),
        ("ingress.queue_seconds", plain(ingress.queue.as_secs())),
        ("ingress.connect_seconds", plain(ingress.connect.as_secs())),
        ("ingress.client_seconds", plain(ingress.client.as_secs())),
        ("ingress.server_seconds", plain(ingress.server.as_secs())),
        ("ingress.request_seconds", plain(ingress.request.as_secs())),
        ("ingress.keep_alive_seconds", plain(ingress.keep_alive.as_secs())),
        ("ingress.header_bytes", plain(ingress.header_bytes)),
        ("ingress.body_bytes", plain(ingress.body_bytes)),
        ("ingress.body_bytes_per_second", plain(ingress.body_bytes_per_second)),
        ("ingress.post_path", text(&ingress.post_path)),
        ("arti.enabled", plain(arti.enabled)),
        ("arti.state_dir", text(arti.state_dir.display())),
        ("arti.key_file", arti.key_file.as_ref().and_then(|path| text(path.display()))),
        ("arti.ports", list(arti.ports.iter().map(plain))),
        ("arti.num_intro_points", plain(arti.num_intro_points)),
        ("arti.intro_per_second", off(arti.intro_per_second)),
        ("arti.intro_burst", plain(arti.intro_burst)),
        ("arti.max_streams_per_circuit", plain(arti.max_streams_per_circuit)),
        ("arti.clients_dir", arti.clients_dir.as_ref().and_then(|path| text(path.display()))),
        ("arti.pow", plain(arti.pow)),
        ("arti.pow_queue_rate", plain(arti.pow_queue_rate)),
        ("arti.pow_queue_burst", plain(arti.pow_queue_burst)),
        ("arti.network_file", arti.network_file.as_ref().and_then(|path| text(path.display()))),
        ("circuits.profile", text(circuits.profile)),
        ("circuits.max_connections_per_second", plain(circuits.max_connections_per_second)),
        ("circuits.max_concurrent_connections", plain(circuits.max_concurrent_connections)),
        ("circuits.max_per_circuit_per_minute", circuits.max_per_circuit_per_minute.and_then(off)),
        ("circuits.max_concurrent_per_circuit", circuits.max_concurrent_per_circuit.and_then(plain)),
        ("circuits.connections_per_10_seconds", circuits.connections_per_10_seconds.and_then(off)),
        ("circuits.slow_requests_per_10_seconds", circuits.slow_requests_per_10_seconds.and_then(plain)),
        ("circuits.requests_per_10_seconds", circuits.requests_per_10_seconds.and_then(plain)),
        ("circuits.mebibytes_per_minute", off(circuits.mebibytes_per_minute)),
        ("circuits.cpu_milliseconds_per_minute", off(circuits.cpu_per_minute)),
        ("circuits.vip_requests_per_10_seconds", plain(circuits.vip_requests_per_10_seconds)),
        ("circuits.ban_threshold", plain(circuits.ban_threshold)),
        ("circuits.shadow", list(circuits.shadow.iter().map(|word| text(word.label())))),
        ("circuits.log_refusals", plain(circuits.log_refusals)),
        ("circuits.ban_duration_seconds", plain(circuits.ban_duration.as_secs())),
        ("circuits.table_size", plain(circuits.table_size)),
        ("circuits.keep_seconds", plain(circuits.keep.as_secs())),
        ("circuits.circuit_health_interval_secs", plain(circuits.health_interval.as_secs())),
        ("circuits.max_circuit_age_secs", plain(circuits.max_age.as_secs())),
        ("circuits.max_circuit_latency_secs", plain(circuits.max_latency.as_secs())),
        (
            "circuits.rotate_hard_after_secs",
            plain(circuits.rotate_hard_after.map_or(0, |span| span.as_secs())),
        ),
        ("circuits.pow_activation_threshold", part(circuits.pow_activation_threshold)),
        ("circuits.pow_difficulty", plain(circuits.pow_difficulty)),
        ("circuits.pow_difficulty_min", plain(circuits.pow_difficulty_min)),
        ("circuits.pow_difficulty_max", plain(circuits.pow_difficulty_max)),
        ("circuits.pow_page_max", plain(circuits.pow_page_max)),
        ("circuits.pow_expires_seconds", plain(circuits.pow_expires.as_secs())),
        ("circuits.pow_tcp", plain(circuits.pow_tcp)),
        ("circuits.pow_grants", text(circuits.pow_grants)),
        ("circuits.token_life_seconds", plain(circuits.token_life.as_secs())),
        ("circuits.token_circuits", plain(circuits.token_circuits)),
        ("circuits.backend_grants", plain(circuits.backend_grants)),
        ("circuits.false_positive_budget", part(circuits.false_positive_budget)),
        ("circuits.false_positive_least_holders", plain(circuits.false_positive_least_holders)),
        ("circuits.paid_share", part(circuits.paid_share)),
        ("load.rise_seconds", plain(load.rise.as_secs())),
        ("load.fall_seconds", plain(load.fall.as_secs())),
        ("load.rendezvous_per_second", plain(load.rendezvous_per_second)),
        ("load.rejections_per_second", plain(load.rejections_per_second)),
        ("load.puzzle_queue", plain(load.puzzle_queue)),
        ("sybil.alike_percent", plain(sybil.alike_percent)),
        ("sybil.learn_seconds", plain(sybil.learn.as_secs())),
        ("sybil.raises_level", text(sybil.raises_level)),
        ("sybil.samples", plain(sybil.samples)),
        ("haproxy.socket", haproxy.socket.as_ref().and_then(|path| text(path.display()))),
        ("haproxy.table", text(&haproxy.table)),
        ("http.enabled", plain(http.enabled)),
        ("http.listen", text(http.listen)),
        ("control.socket", text(control.socket.display())),
        ("control.group", text(&control.group)),
        ("ledger.path", text(ledger.path.display())),
        ("log.level", text(log.level)),
        ("log.format", text(log.format)),
    ]
}

/// The example with the `#` before each key removed, which is what an operator does with it.
fn example_switched_on() -> String {
    // Sentences have a space after their `#`, keys have none.
    example().replace("\n#", "\n").replace("\n ", "\n# ")
}

/// Calls `result_of` with the name and text of each `NAME.toml` in `folder`, and compares with `NAME.txt`.
fn compare(folder: &str, result_of: impl Fn(&str, &str) -> String) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder);
    let (mut rows, mut differences) = (0, String::new());
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        rows += 1;
        let name = path.file_name().unwrap().to_str().unwrap();
        let result = result_of(name, &fs::read_to_string(&path).unwrap());
        let expected = fs::read_to_string(path.with_extension("txt")).unwrap_or_default();
        if result.trim_end() != expected.trim_end() {
            differences.push_str(&format!("--- {name}, expected\n{expected}--- {name}, is\n{result}\n"));
        }
    }
    assert!(rows > 0, "no rows in {}", folder.display());
    assert!(differences.is_empty(), "{differences}");
}

#[test]
fn good_files_are_read() {
    let defaults = settings(&read(MINIMAL, "minimal").unwrap());
    compare("good", |name, text| {
        let config = read(text, name).unwrap_or_else(|problems| panic!("{problems}"));
        let changed = settings(&config).into_iter().filter(|setting| !defaults.contains(setting));
        let changed = changed.map(|(key, value)| format!("{key} = {}\n", value.unwrap()));
        let warnings = config.warnings().into_iter().map(|warning| format!("warning: {warning}\n"));
        changed.chain(warnings).collect()
    });
}

#[test]
fn bad_files_are_refused() {
    compare("bad", |name, text| read(text, name).expect_err(name).to_string());
}

#[test]
fn defaults_are_those_of_the_table() {
    let config = read(MINIMAL, "minimal").unwrap();
    let settings = settings(&config);
    let keys: Vec<&str> = settings.iter().map(|(key, _)| *key).collect();
    assert_eq!(keys, REFERENCE.iter().map(|doc| doc.key).collect::<Vec<_>>());
    for (doc, (_, value)) in REFERENCE.iter().zip(&settings) {
        let expected = if doc.is_required { doc.example } else { doc.default };
        assert_eq!(value.as_deref(), expected, "{}", doc.key);
    }
    assert_eq!(config.shield.tables.bans.get() as usize, DEFAULT_BANS);
    assert_eq!(config.shield.tables.allow.get() as usize, DEFAULT_ALLOW);
}

#[test]
fn the_example_equals_the_defaults() {
    assert_eq!(read(&example(), "example"), read(MINIMAL, "minimal"));
    let switched_on = example_switched_on();
    assert_eq!(
        switched_on.lines().filter(|line| line.contains(" = ") && !line.starts_with('#')).count(),
        REFERENCE.len()
    );
    let unset = "first_attach_confirm_seconds = 120\n[tor]\nuser = \"debian-tor\"\ncontrol = \"unix:/run/tor/control\"\n\
        control_cookie_file = \"/run/tor/control.authcookie\"\n\
        control_password_file = \"/etc/tunica/tor-control-password\"\nmetrics = \"127.0.0.1:9035\"\n\
        [ingress]\nsocket = \"/run/tunica-front/ingress.sock\"\n\
        maintenance_page = \"/etc/tunica/maintenance.html\"\n\
        [arti]\nkey_file = \"/var/lib/tunica-front/hs_ed25519_secret_key\"\n\
        clients_dir = \"/etc/tunica/authorized_clients\"\nnetwork_file = \"/etc/tunica/arti-network.toml\"\n\
        [circuits]\nmax_per_circuit_per_minute = 10\nmax_concurrent_per_circuit = 15\n\
        connections_per_10_seconds = 10\nslow_requests_per_10_seconds = 20\nrequests_per_10_seconds = 50\n\
        [haproxy]\nsocket = \"/run/haproxy/tunica.sock\"\n";
    assert_eq!(read(&switched_on, "example"), read(&format!("{MINIMAL}{unset}"), "minimal"));
}

#[test]
fn the_reference_page_has_a_row_for_each_key() {
    let page = reference_markdown();
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
    assert_eq!(rows.len(), REFERENCE.len());
    for (row, doc) in rows.iter().zip(REFERENCE.iter()) {
        assert_eq!(row.matches('|').count(), 6, "{row}");
        let cells = [doc.kind.as_str(), doc.default.unwrap_or_default(), &doc.allowed, doc.meaning];
        assert!(cells.iter().all(|cell| row.contains(cell)), "{row}");
    }
}

#[test]
fn words_read_back() {
    for word in [Mode::Off, Mode::Observe, Mode::Enforce] {
        assert_eq!(word.label().parse(), Ok(word));
    }
    for word in [Attach::Native, Attach::NativeOrGeneric, Attach::Nftables] {
        assert_eq!(word.label().parse(), Ok(word));
    }
    for word in [OnStale::KeepLimits, OnStale::SanityOnly, OnStale::Pass] {
        assert_eq!(word.label().parse(), Ok(word));
    }
    for word in [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug, LogLevel::Trace] {
        assert_eq!(word.label().parse(), Ok(word));
    }
    for word in [LogFormat::Text, LogFormat::Json] {
        assert_eq!(word.label().parse(), Ok(word));
    }
    let error = "watch".parse::<Mode>().unwrap_err().to_string();
    assert_eq!(error, "`watch` is unknown here; the words are off, observe, enforce");
}

#[test]
fn files_that_cannot_be_read_say_why() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tunica.toml");
    let error = read_file(&path).unwrap_err();
    assert!(
        matches!(&error, ReadFileError::Open { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
    );

    fs::write(&path, b"[shield]\ninterfaces = [\"\xff\"]\n").unwrap();
    let error = read_file(&path).unwrap_err().to_string();
    let expected = format!(
        "{}:2:16: a byte that is not UTF-8: TOML is UTF-8, so the file cannot be understood; save the file as UTF-8",
        path.display()
    );
    assert_eq!(error, expected);

    fs::write(&path, MINIMAL).unwrap();
    assert_eq!(read_file(&path).unwrap(), read(MINIMAL, "minimal").unwrap());
}

#[test]
fn addresses_do_not_show_in_debug() {
    let config = read(&format!("{MINIMAL}allow = [\"198.51.100.7\"]\n"), "debug").unwrap();
    assert!(!format!("{config:?}").contains("198.51"));
}

/// That `text` either reads, or is refused for reasons that lie within it.
fn reads_or_says_why(text: &str) -> Result<(), TestCaseError> {
    let Err(problems) = read(text, "random") else {
        return Ok(());
    };
    prop_assert!(!problems.as_slice().is_empty());
    for problem in problems.as_slice() {
        prop_assert!(problem.line >= 1 && problem.line <= text.split('\n').count(), "{problem}");
        let line = text.split('\n').nth(problem.line - 1).unwrap();
        prop_assert!(problem.column >= 1 && problem.column <= line.chars().count() + 1, "{problem}");
        prop_assert!(problem.to_string().lines().count() == 1, "{problem}");
    }
    Ok(())
}

/// Pieces that a file may be made of, so that random files reach beyond the parser.
fn pieces() -> impl Strategy<Value = String> {
    let keys: Vec<String> = REFERENCE
        .iter()
        .flat_map(|doc| [doc.key, doc.key.rsplit('.').next().unwrap()])
        .map(str::to_owned)
        .collect();
    prop_oneof![
        4 => prop::sample::select(keys),
        2 => prop::sample::select(vec!["[", "]", "[[", "]]", "{", "}", "=", " = ", ",", ".", "\n", "\r\n", "#", "\"", "'", "\"\"\"", "-", "0x", "1_0", "\u{feff}", "\u{0}", "ä", "1979-05-27"])
            .prop_map(str::to_owned),
        1 => any::<i64>().prop_map(|number| number.to_string()),
        1 => ".{0,8}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    /// For all strings, reading ends without panic and with a configuration or with reasons.
    #[test]
    fn any_text_is_read_or_refused(text in "\\PC*|(?s).*") {
        reads_or_says_why(&text)?;
    }

    /// For all sequences of the words that files are made of, likewise.
    #[test]
    fn any_pieces_are_read_or_refused(pieces in prop::collection::vec(pieces(), 0..40)) {
        reads_or_says_why(&pieces.concat())?;
    }

    /// For all changes to a few places of a good file, likewise.
    #[test]
    fn any_mutation_is_read_or_refused(
        changes in prop::collection::vec((any::<Index>(), 0usize..12, pieces()), 1..6),
        is_long: bool,
    ) {
        let mut text = if is_long { example_switched_on() } else { MINIMAL.to_owned() };
        for (place, removed, piece) in changes {
            let start = text.floor_char_boundary(place.index(text.len() + 1));
            let end = text.ceil_char_boundary((start + removed).min(text.len()));
            text.replace_range(start..end, &piece);
        }
        reads_or_says_why(&text)?;
    }

    /// For all rates and bursts within their ranges, a file is accepted exactly when the kernel's limiter can count them.
    #[test]
    fn rate_and_burst_fit_or_are_refused(rate in 1u32..=1_000, burst in 1u32..=10_000) {
        let text = format!("{MINIMAL}[shield.syn]\nper_source_per_second = {rate}\nburst = {burst}\n");
        let fits = tunica_common::gcra::Limit::new(rate, burst);
        prop_assert_eq!(read(&text, "syn").ok().map(|config| config.shield.syn.limit), fits);
    }
}
