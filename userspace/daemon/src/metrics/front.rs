//! What of the ingress is shown.

use prometheus::IntCounterVec;
use tunica_api::front::{ARTI_STATES, Digest, PUZZLE_FAILURES, PUZZLE_KINDS, TOKEN_GRANTS};
use tunica_core::{circuit_policy::TokenRefused, refusal::Refusal};

use super::{Families, Follower, Metrics};

/// Counters that follow the front's own.
pub(super) struct FrontFollowers {
    connections: Follower,
    requests: Follower,
    new_circuits: Follower,
    unwatched: Follower,
    bytes_in: Follower,
    bytes_out: Follower,
    panics: Follower,
    let_in: Follower,
    rendezvous: Follower,
    issued: Vec<(&'static str, Follower)>,
    solved: Vec<(&'static str, Follower)>,
    failed: Vec<(&'static str, Follower)>,
    refused: Vec<(&'static str, Follower)>,
    closed: Vec<(&'static str, Follower)>,
    tokens_issued: Vec<(&'static str, Follower)>,
    tokens_refused: Vec<(&'static str, Follower)>,
    tokens_accepted: Follower,
    tokens_revoked: Follower,
    holders: Follower,
    holders_refused: Follower,
    /// All, and those of VIPs.
    would_refuse: Vec<(&'static str, [Follower; 2])>,
    process: std::sync::atomic::AtomicU64,
}

impl FrontFollowers {
    pub(super) fn new(families: &Families) -> Self {
        let labelled =
            |family: &IntCounterVec, label: &str| Follower::new(family.with_label_values(&[label]));
        let of = |family: &IntCounterVec, labels: &[&'static str]| {
            labels.iter().map(|label| (*label, labelled(family, label))).collect()
        };
        Self {
            connections: Follower::new(families.front_connections.clone()),
            requests: Follower::new(families.front_requests.clone()),
            new_circuits: Follower::new(families.circuits_new.clone()),
            unwatched: Follower::new(families.circuits_unwatched.clone()),
            bytes_in: labelled(&families.front_bytes, "in"),
            bytes_out: labelled(&families.front_bytes, "out"),
            panics: Follower::new(families.front_panics.clone()),
            let_in: Follower::new(families.front_let_in.clone()),
            rendezvous: Follower::new(families.front_arti_rendezvous.clone()),
            issued: of(&families.front_issued, &PUZZLE_KINDS),
            solved: of(&families.front_solved, &PUZZLE_KINDS),
            failed: of(&families.front_failed, &PUZZLE_FAILURES),
            tokens_issued: of(&families.front_tokens_issued, &TOKEN_GRANTS),
            tokens_refused: of(&families.front_tokens_refused, &TokenRefused::ALL.map(TokenRefused::label)),
            tokens_accepted: Follower::new(families.front_tokens_accepted.clone()),
            tokens_revoked: Follower::new(families.front_tokens_revoked.clone()),
            holders: labelled(&families.front_holders, "seen"),
            holders_refused: labelled(&families.front_holders, "refused"),
            refused: Refusal::ALL
                .iter()
                .map(|refusal| (refusal.label(), labelled(&families.front_refused, refusal.label())))
                .collect(),
            closed: of(&families.circuits_closed, &Refusal::CLOSES.map(Refusal::label)),
            would_refuse: Refusal::ALL
                .iter()
                .filter(|word| word.may_be_shadow())
                .map(|word| {
                    let of = |whose| {
                        Follower::new(families.front_would_refuse.with_label_values(&[word.label(), whose]))
                    };
                    (word.label(), [of("anybody"), of("vip")])
                })
                .collect(),
            process: std::sync::atomic::AtomicU64::new(0),
        }
    }

    fn each(&self) -> impl Iterator<Item = &Follower> {
        let each = [
            &self.connections,
            &self.requests,
            &self.new_circuits,
            &self.unwatched,
            &self.bytes_in,
            &self.bytes_out,
            &self.panics,
            &self.let_in,
            &self.tokens_accepted,
            &self.tokens_revoked,
            &self.holders,
            &self.holders_refused,
            &self.rendezvous,
        ];
        let others = [&self.tokens_issued, &self.tokens_refused, &self.closed];
        let labelled = [&self.refused, &self.issued, &self.solved, &self.failed].into_iter().chain(others);
        each.into_iter()
            .chain(labelled.flatten().map(|(_, follower)| follower))
            .chain(self.would_refuse.iter().flat_map(|(_, followers)| followers))
    }
}

impl Metrics {
    /// Counts a circuit that tor closes because the policy does not want it any more; those that the front closes itself it
    /// counts itself.
    pub fn count_closed_circuit(&self, why: Refusal) {
        self.families.circuits_closed.with_label_values(&[why.label()]).inc();
    }

    /// Shows what the front said last; `None`: it is not there.
    pub fn set_front(&self, digest: Option<&Digest>) {
        let families = &self.families;
        families.front_up.set(i64::from(digest.is_some()));
        let nothing = Digest::default();
        let of = digest.unwrap_or(&nothing);
        let gauge = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        families.front_active.set(gauge(of.active));
        families.front_most_active.set(gauge(of.most_active));
        families.front_waiting.set(gauge(of.waiting));
        families.front_most_waiting.set(gauge(of.most_waiting));
        families.front_wait.set(std::time::Duration::from_millis(of.first_wait_milliseconds).as_secs_f64());
        families.front_tarpitted.set(gauge(of.tarpitted));
        families.circuits_tracked.set(gauge(of.tracked));
        families.circuits_capacity.set(gauge(of.most_tracked));
        families.circuits_banned.set(gauge(of.banned));
        families.circuits_vip.set(gauge(of.vips));
        families.circuits_marked.set(gauge(of.marked));
        families.front_tokens.set(gauge(of.tokens.live));
        families.front_room.set(gauge(of.puzzles.waiting_room));
        families.front_arti.reset();
        for state in of.arti.iter().flat_map(|_| ARTI_STATES) {
            let is_it = of.arti.as_ref().is_some_and(|arti| arti.state == state);
            families.front_arti.with_label_values(&[state]).set(i64::from(is_it));
        }
        families.front_arti_circuits.set(gauge(of.arti.as_ref().map_or(0, |arti| arti.circuits)));
        families.front_backend.reset();
        // By its place in the configuration, since its address must stand in no label.
        for (number, backend) in (1_u32..).zip(&of.backends) {
            families.front_backend.with_label_values(&[&number.to_string()]).set(i64::from(backend.is_well));
        }
        let Some(digest) = digest else { return };
        let front = &self.front;
        if front.process.swap(digest.process, std::sync::atomic::Ordering::Relaxed) != digest.process {
            front.each().for_each(Follower::begin_anew);
        }
        front.connections.follow(digest.connections);
        front.requests.follow(digest.requests);
        front.new_circuits.follow(digest.new_circuits);
        front.unwatched.follow(digest.unwatched);
        front.bytes_in.follow(digest.bytes_in);
        front.bytes_out.follow(digest.bytes_out);
        front.panics.follow(digest.panics);
        let puzzles = &digest.puzzles;
        front.let_in.follow(puzzles.let_in);
        front.tokens_accepted.follow(digest.tokens.accepted);
        front.tokens_revoked.follow(digest.tokens.revoked);
        front.holders.follow(digest.tokens.holders);
        front.holders_refused.follow(digest.tokens.holders_refused);
        front.rendezvous.follow(digest.arti.as_ref().map_or(0, |arti| arti.rendezvous));
        for (followers, totals) in [
            (&front.refused, &digest.refused),
            (&front.closed, &digest.closed),
            (&front.issued, &puzzles.issued),
            (&front.solved, &puzzles.solved),
            (&front.failed, &puzzles.failed),
            (&front.tokens_issued, &digest.tokens.issued),
            (&front.tokens_refused, &digest.tokens.refused),
        ] {
            for (label, follower) in followers {
                if let Some(total) = totals.get(*label) {
                    follower.follow(*total);
                }
            }
        }
        for (label, [anybody, vip]) in &front.would_refuse {
            if let Some((all, vips)) = digest.would_refuse.get(*label) {
                anybody.follow(all.saturating_sub(*vips));
                vip.follow(*vips);
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use tunica_api::front::{Arti, BackendHealth, Puzzles, Tokens};

    use super::*;
    use crate::metrics::tests::metrics;

    /// A digest of which every number is another.
    pub(in crate::metrics) fn digest() -> Digest {
        Digest {
            process: 7,
            active: 1,
            most_active: 2,
            waiting: 3,
            most_waiting: 17,
            first_wait_milliseconds: 18_000,
            tarpitted: 4,
            tracked: 5,
            most_tracked: 6,
            banned: 7,
            vips: 8,
            marked: 61,
            closed: [(Refusal::CircuitSlow.label().to_owned(), 62), ("no_word_of_ours".to_owned(), 63)]
                .into(),
            connections: 9,
            requests: 10,
            new_circuits: 11,
            unwatched: 24,
            bytes_in: 12,
            bytes_out: 13,
            panics: 14,
            refused: [(Refusal::Banned.label().to_owned(), 15), ("no_word_of_ours".to_owned(), 16)].into(),
            would_refuse: [(Refusal::RequestRate.label().to_owned(), (37, 17))].into(),
            puzzles: Puzzles {
                issued: [("page".to_owned(), 17), ("tcp".to_owned(), 18)].into(),
                solved: [("picture".to_owned(), 19), ("other".to_owned(), 20)].into(),
                failed: [("too_easy".to_owned(), 21)].into(),
                waiting_room: 22,
                let_in: 23,
            },
            tokens: Tokens {
                issued: [("puzzle".to_owned(), 41), ("nobody".to_owned(), 42)].into(),
                accepted: 43,
                refused: [("in_use".to_owned(), 44)].into(),
                revoked: 45,
                live: 46,
                holders: 47,
                holders_refused: 48,
                has_key: true,
            },
            backends: vec![
                BackendHealth { place: "127.0.0.1:1".to_owned(), is_well: true },
                BackendHealth { place: "unix:/run/app.sock".to_owned(), is_well: false },
            ],
            arti: Some(Arti { state: "running".to_owned(), circuits: 51, rendezvous: 52 }),
            ..Digest::default()
        }
    }

    #[test]
    fn each_number_of_a_digest_has_its_series() {
        let metrics = metrics();
        metrics.set_front(Some(&digest()));
        let text = metrics.render().unwrap();
        for (series, value) in [
            ("tunica_front_up", 1),
            ("tunica_front_arti_state{state=\"running\"}", 1),
            ("tunica_front_arti_state{state=\"failed\"}", 0),
            ("tunica_front_arti_circuits", 51),
            ("tunica_front_arti_rendezvous_total", 52),
            ("tunica_front_active", 1),
            ("tunica_front_active_max", 2),
            ("tunica_front_waiting", 3),
            ("tunica_front_waiting_max", 17),
            ("tunica_front_wait_seconds", 18),
            ("tunica_front_tarpitted", 4),
            ("tunica_circuits_tracked", 5),
            ("tunica_circuits_capacity", 6),
            ("tunica_circuits_banned", 7),
            ("tunica_circuits_vip", 8),
            ("tunica_circuits_marked", 61),
            ("tunica_circuits_closed_total{refusal=\"circuit_slow\"}", 62),
            ("tunica_circuits_closed_total{refusal=\"circuit_aged\"}", 0),
            ("tunica_front_connections_total", 9),
            ("tunica_front_requests_total", 10),
            ("tunica_circuits_new_total", 11),
            ("tunica_circuits_unwatched_total", 24),
            ("tunica_front_bytes_total{direction=\"in\"}", 12),
            ("tunica_front_bytes_total{direction=\"out\"}", 13),
            ("tunica_front_panics_total", 14),
            ("tunica_front_refused_total{refusal=\"banned\"}", 15),
            ("tunica_front_puzzles_issued_total{kind=\"page\"}", 17),
            ("tunica_front_puzzles_issued_total{kind=\"tcp\"}", 18),
            ("tunica_front_puzzles_issued_total{kind=\"program\"}", 0),
            ("tunica_front_puzzles_solved_total{kind=\"picture\"}", 19),
            ("tunica_front_puzzles_failed_total{reason=\"too_easy\"}", 21),
            ("tunica_front_puzzles_failed_total{reason=\"misread\"}", 0),
            ("tunica_front_waiting_room", 22),
            ("tunica_front_tokens_issued_total{by=\"puzzle\"}", 41),
            ("tunica_front_tokens_issued_total{by=\"backend\"}", 0),
            ("tunica_front_tokens_accepted_total", 43),
            ("tunica_front_tokens_refused_total{reason=\"in_use\"}", 44),
            ("tunica_front_tokens_refused_total{reason=\"forged\"}", 0),
            ("tunica_front_tokens_revoked_total", 45),
            ("tunica_front_tokens", 46),
            ("tunica_front_token_holders_total{outcome=\"seen\"}", 47),
            ("tunica_front_token_holders_total{outcome=\"refused\"}", 48),
            ("tunica_front_waiting_room_let_in_total", 23),
            ("tunica_front_refused_total{refusal=\"capacity\"}", 0),
            ("tunica_front_would_refuse_total{refusal=\"request_rate\",whose=\"anybody\"}", 20),
            ("tunica_front_would_refuse_total{refusal=\"request_rate\",whose=\"vip\"}", 17),
            ("tunica_front_backend_up{backend=\"1\"}", 1),
            ("tunica_front_backend_up{backend=\"2\"}", 0),
        ] {
            assert!(text.contains(&format!("\n{series} {value}\n")), "{series} {value} in\n{text}");
        }
        assert!(
            !text.contains("no_word_of_ours") && !text.contains("\"other\""),
            "a label from outside the closed set"
        );
        assert!(!text.contains("127.0.0.1") && !text.contains("app.sock"), "an address in\n{text}");
    }

    #[test]
    fn counters_go_on_when_the_front_starts_again_and_gauges_end_with_it() {
        let metrics = metrics();
        let connections = |metrics: &Metrics| metrics.families.front_connections.get();
        metrics.set_front(Some(&Digest { connections: 100, ..digest() }));
        metrics.set_front(Some(&Digest { connections: 130, ..digest() }));
        assert_eq!(connections(&metrics), 130);
        // More than the one before, and all of them new.
        metrics.set_front(Some(&Digest { connections: 200, process: 8, ..digest() }));
        assert_eq!(connections(&metrics), 330);
        metrics.set_front(None);
        assert_eq!((connections(&metrics), metrics.families.front_active.get()), (330, 0));
        assert_eq!(metrics.families.front_up.get(), 0);
    }
}
