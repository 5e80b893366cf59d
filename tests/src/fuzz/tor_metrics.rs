//! Tor's MetricsPort: [`tunica_onion::tor_metrics`].

use std::fmt::Write as _;

use tunica_onion::tor_metrics::TorMetrics;

const ANSWER: &str = include_str!("../../../userspace/onion/tests/transcripts/tor_metrics.txt");
const AFTER_RELOAD: &str =
    include_str!("../../../userspace/onion/tests/transcripts/tor_metrics_after_reload.txt");

/// Families that are read, and others.
const LINES: &str = "# HELP tor_hs_intro_num_total Introductions\n\
                     tor_hs_intro_num_total{onion=\"a\"} 7\ntor_hs_intro_num_total{onion=\"b\\\"}\",port=\"80\"} 8 1700000000\n\
                     tor_hs_intro_rejected_intro_req_count{onion=\"a\",reason=\"replay\"} 1\ntor_hs_rdv_num_total 9\n\
                     tor_hs_rdv_established_count{onion=\"a\"} -5\ntor_hs_rdv_pow_pqueue_count{onion=\"a\"} 3\n\
                     tor_hs_pow_suggested_effort{onion=\"a\"} 4\ntor_relay_other 1.5e9\n";

/// What tor was seen to answer, the lines of it that are read, and each of these alone.
pub fn seeds() -> Vec<Vec<u8>> {
    // Longer ones than the fuzzer's are cut there.
    let onion = |text: &str| {
        let of_services = text.lines().filter(|line| line.starts_with("tor_hs_"));
        of_services.take(40).map(|line| format!("{line}\n")).collect::<String>().into_bytes()
    };
    let lines = LINES.lines().map(|line| format!("{line}\n").into_bytes());
    [onion(ANSWER), onion(AFTER_RELOAD), LINES.as_bytes().to_vec()].into_iter().chain(lines).collect()
}

/// For all texts, an answer is read, and then means the same written by another and its parts add up, or is an error at a
/// line of it that shows nothing of the text.
pub fn check(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let metrics = match TorMetrics::parse(&text) {
        Ok(metrics) => metrics,
        Err(error) => {
            let shown = error.to_string();
            assert!((1..=text.lines().count()).contains(&error.line), "{shown}");
            assert!(!shown.chars().any(char::is_control), "{shown:?}");
            return;
        }
    };
    assert_eq!(TorMetrics::parse(&written(&metrics)), Ok(metrics));
    // A connection that breaks is noticed, wherever.
    if let Some(cut) = text.strip_suffix('\n').filter(|cut| !cut.is_empty() && !cut.ends_with('\n')) {
        assert!(TorMetrics::parse(cut).is_err());
    }
    let middle = text.match_indices('\n').map(|(at, _)| at + 1).nth(text.lines().count() / 2).unwrap_or(0);
    let (first, second) = text.split_at(middle);
    // A gauge below zero may make room for what does not fit alone.
    if let (Ok(first), Ok(second)) = (TorMetrics::parse(first), TorMetrics::parse(second)) {
        let sum =
            |one: Option<u64>, other: Option<u64>| one.map_or(other, |one| Some(one + other.unwrap_or(0)));
        assert_eq!(metrics.introductions, sum(first.introductions, second.introductions));
        assert_eq!(metrics.rejections, sum(first.rejections, second.rejections));
        assert_eq!(metrics.rendezvous, sum(first.rendezvous, second.rendezvous));
        assert_eq!(metrics.suggested_effort, first.suggested_effort.max(second.suggested_effort));
    }
}

fn written(metrics: &TorMetrics) -> String {
    let TorMetrics { introductions, rejections, rendezvous, open_rendezvous, puzzle_queue, suggested_effort } =
        *metrics;
    let mut text = "# TYPE tor_hs_intro_num_total counter\n\n".to_owned();
    let numbers: [(&str, Option<i128>); 6] = [
        ("tor_hs_intro_num_total", introductions.map(i128::from)),
        ("tor_hs_intro_rejected_intro_req_count", rejections.map(i128::from)),
        ("tor_hs_rdv_num_total", rendezvous.map(i128::from)),
        ("tor_hs_rdv_established_count", open_rendezvous.map(i128::from)),
        ("tor_hs_rdv_pow_pqueue_count", puzzle_queue.map(i128::from)),
        ("tor_hs_pow_suggested_effort", suggested_effort.map(i128::from)),
    ];
    for (name, number) in numbers {
        if let Some(number) = number {
            let _ = writeln!(text, "{name}{{onion=\"a}}\\\"\",reason=\"\"}} {number} 1700000000000");
        }
    }
    text
}
