//! Tor's MetricsPort: what tor 0.4.9.11 was seen to answer, and what must hold for all.
//!
//! The transcripts are recorded; the names of the services are made up. The first tor had one service and five
//! visits. Then its configuration was reloaded with a second service, which had three visits; the five circuits from
//! before ended. Of the second answer only the lines about onion services were kept.
#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use proptest::prelude::*;
use tunica_onion::tor_metrics::{MOST_BYTES, MetricsError, MetricsFault, TorMetrics};

const VISITED: &str = include_str!("transcripts/tor_metrics.txt");
const RELOADED: &str = include_str!("transcripts/tor_metrics_after_reload.txt");

#[test]
fn a_recorded_answer_is_summed_over_services() {
    assert_eq!(
        TorMetrics::parse(VISITED),
        Ok(TorMetrics {
            introductions: Some(5),
            rejections: Some(0),
            rendezvous: Some(5),
            open_rendezvous: Some(5),
            puzzle_queue: Some(0),
            suggested_effort: Some(0),
        })
    );
    // Counters began again, and circuits from before were subtracted: 3 - 5.
    assert_eq!(
        TorMetrics::parse(RELOADED),
        Ok(TorMetrics {
            introductions: Some(3),
            rejections: Some(0),
            rendezvous: Some(3),
            open_rendezvous: Some(-2),
            puzzle_queue: Some(0),
            suggested_effort: Some(0),
        })
    );
}

#[test]
fn what_is_absent_is_not_zero() {
    for body in ["", "\n", "# a comment\n", "tor_bug_reached_count nonsense\n", "tor_hs_rdv_num_totals 4\n"] {
        assert_eq!(TorMetrics::parse(body), Ok(TorMetrics::default()), "{body}");
    }
}

#[test]
fn reasons_and_services_are_added_and_efforts_are_not() {
    let body = "tor_hs_intro_rejected_intro_req_count{onion=\"a\",reason=\"replay\"} 2\n\
                tor_hs_intro_rejected_intro_req_count{onion=\"a\",reason=\"subcredential\"} 3\n\
                tor_hs_intro_rejected_intro_req_count{onion=\"b\",reason=\"replay\"} 4\n\
                tor_hs_rdv_pow_pqueue_count{onion=\"a\"} -1\n\
                tor_hs_rdv_pow_pqueue_count{onion=\"b\"} 10\n\
                tor_hs_pow_suggested_effort{onion=\"a\"} 30\n\
                tor_hs_pow_suggested_effort{onion=\"b\"} 20\n";
    let expected = TorMetrics {
        rejections: Some(9),
        puzzle_queue: Some(9),
        suggested_effort: Some(30),
        ..TorMetrics::default()
    };
    assert_eq!(TorMetrics::parse(body), Ok(expected));
}

/// What may stand behind the name of a family that is read, and the count or the fault.
#[test]
fn lines_of_a_family_that_is_read_are_read_strictly() {
    use MetricsFault::{Labels, Number};
    for (rest, expected) in [
        (" 7", Ok(7)),
        ("\t7 ", Ok(7)),
        ("  7  1700000000000", Ok(7)),
        ("{} 7", Ok(7)),
        ("{}7", Ok(7)),
        (r#"{onion="a",} 7"#, Ok(7)),
        (r#"{onion="a} 9",reason="x"} 7"#, Ok(7)),
        (r#"{onion="a\" 9",reason="\\"} 7"#, Ok(7)),
        (" 18446744073709551615", Ok(u64::MAX)),
        (" 18446744073709551616", Err(Number)),
        (" -1", Err(Number)),
        (" +1", Err(Number)),
        (" 7.0", Err(Number)),
        (" 7e3", Err(Number)),
        (" NaN", Err(Number)),
        (" +Inf", Err(Number)),
        (" 0x7", Err(Number)),
        (" 7 8 9", Err(Number)),
        (" 7 x", Err(Number)),
        (" ", Err(Number)),
        ("{}", Err(Number)),
        (" 7\r", Err(Number)),
        ("", Err(Labels)),
        ("-7", Err(Labels)),
        (r#"{onion="a" 7"#, Err(Labels)),
        (r#"{onion="a 7"#, Err(Labels)),
        (r#"{onion="a\"} 7"#, Err(Labels)),
        ("{onion=a} 7", Err(Labels)),
        (r#"{="a"} 7"#, Err(Labels)),
        (r#"{on ion="a"} 7"#, Err(Labels)),
        (r#"{onion="a"reason="b"} 7"#, Err(Labels)),
        (r#"{,onion="a"} 7"#, Err(Labels)),
        ("{ 7", Err(Labels)),
    ] {
        let read = TorMetrics::parse(&format!("# first\ntor_hs_rdv_num_total{rest}\n"));
        let expected = expected
            .map(|count| TorMetrics { rendezvous: Some(count), ..TorMetrics::default() })
            .map_err(|fault| MetricsError { line: 2, fault });
        assert_eq!(read, expected, "{rest:?}");
    }
}

#[test]
fn each_family_is_found_under_its_own_name() {
    for (name, value) in [
        ("tor_hs_intro_num_total", TorMetrics { introductions: Some(3), ..TorMetrics::default() }),
        (
            "tor_hs_intro_rejected_intro_req_count",
            TorMetrics { rejections: Some(3), ..TorMetrics::default() },
        ),
        ("tor_hs_rdv_num_total", TorMetrics { rendezvous: Some(3), ..TorMetrics::default() }),
        ("tor_hs_rdv_established_count", TorMetrics { open_rendezvous: Some(3), ..TorMetrics::default() }),
        ("tor_hs_rdv_pow_pqueue_count", TorMetrics { puzzle_queue: Some(3), ..TorMetrics::default() }),
        ("tor_hs_pow_suggested_effort", TorMetrics { suggested_effort: Some(3), ..TorMetrics::default() }),
    ] {
        assert_eq!(TorMetrics::parse(&format!("{name} 3\n")), Ok(value), "{name}");
    }
}

#[test]
fn an_answer_is_whole_bounded_and_adds_up() {
    let fault = |body: &str| TorMetrics::parse(body).map_err(|error| (error.line, error.fault));
    assert_eq!(fault("tor_hs_rdv_num_total 7"), Err((1, MetricsFault::Truncated)));
    let most = format!("tor_hs_rdv_num_total {}\n", u64::MAX);
    assert_eq!(fault(&format!("{most}{most}")), Err((2, MetricsFault::Sum)));
    let least = format!("tor_hs_rdv_pow_pqueue_count {}\n", i64::MIN);
    assert_eq!(fault(&format!("{least}{least}")), Err((2, MetricsFault::Sum)));
    let long = "#\n".repeat(MOST_BYTES / 2);
    assert_eq!(fault(&long), Ok(TorMetrics::default()));
    assert_eq!(fault(&format!("{long}\n")), Err((MOST_BYTES / 2 + 1, MetricsFault::TooLong)));
    let error = TorMetrics::parse("\ntor_hs_rdv_num_total{onion=\"secret\"} x\n").unwrap_err();
    assert_eq!(
        error.to_string(),
        "line 2 of tor's metrics has no whole number, or one that does not fit; the answer is not used"
    );
}

proptest! {
    /// For all texts, reading neither panics nor finds what has no line of its own.
    #[test]
    fn no_text_is_too_strange(lines in prop::collection::vec("(tor_hs_rdv_num_total)?[{}\\\\\" =a7,\\-\n]{0,20}", 0..20)) {
        let body = lines.concat();
        if let Ok(metrics) = TorMetrics::parse(&body) {
            let is_told = body.split('\n').any(|line| {
                let rest = line.strip_prefix("tor_hs_rdv_num_total");
                rest.is_some_and(|rest| !rest.starts_with(|letter: char| letter.is_ascii_alphanumeric() || letter == '_'))
            });
            prop_assert_eq!(metrics.rendezvous.is_some(), is_told);
        }
    }

    /// For all places where a recorded answer is cut, it is read as cut off or as less, never as more.
    #[test]
    fn a_part_never_says_more_than_the_whole(cut in 0..RELOADED.len()) {
        let (part, _) = RELOADED.split_at(cut);
        match TorMetrics::parse(part) {
            Ok(metrics) => {
                prop_assert!(part.is_empty() || part.ends_with('\n'));
                prop_assert!(metrics.rendezvous <= Some(3));
            }
            Err(error) => prop_assert_eq!(error.fault, MetricsFault::Truncated),
        }
    }

    /// For all counts of services, the sum is theirs, in any order of lines.
    #[test]
    fn sums_do_not_depend_on_order(counts in prop::collection::vec(0u64..1 << 40, 1..20), turn in 0usize..20) {
        let mut lines: Vec<String> = counts
            .iter()
            .enumerate()
            .map(|(index, count)| format!("tor_hs_rdv_num_total{{onion=\"{index}\"}} {count}\n"))
            .collect();
        let turns = turn % lines.len();
        lines.rotate_left(turns);
        let read = TorMetrics::parse(&lines.concat()).unwrap();
        prop_assert_eq!(read.rendezvous, Some(counts.iter().sum()));
    }
}
