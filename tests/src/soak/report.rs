//! Whether what was held stayed the same, and a page that says so.

use std::{fmt::Write as _, time::Duration};

use super::{
    Course, Held, Look, Plan,
    flood::{
        FRESH_PER_SECOND, PAYERS_PER_SECOND, RECURRING_PER_SECOND, REQUESTS_PER_SECOND, SERVICE,
        SLOW_PER_SECOND,
    },
};
use crate::report::{grouped, machine};

/// What a process held in the two halves behind the warm-up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// Its memory in the first half by the plan's statistic, KiB.
    pub first: u64,
    /// The same in the second.
    pub second: u64,
    /// The line through all looks behind the warm-up (least squares): KiB a minute.
    pub slope: f64,
    /// Most descriptors at a look.
    pub descriptors: u64,
}

impl Verdict {
    /// Of one of the two processes.
    ///
    /// Returns `None` where fewer than four looks are behind the warm-up.
    pub fn of(course: &Course, plan: &Plan, process: impl Fn(&Look) -> Held) -> Option<Self> {
        let looks: Vec<&Look> = course.looks.iter().filter(|look| look.at > plan.warm_up).collect();
        if looks.len() < 4 {
            return None;
        }
        let (first, second) = looks.split_at(looks.len() / 2);
        let memory =
            |looks: &[&Look]| plan.judged_by.of(looks.iter().map(|look| process(look).memory).collect());
        let points: Vec<(f64, f64)> =
            looks.iter().map(|look| (look.at.as_secs_f64() / 60.0, process(look).memory as f64)).collect();
        Some(Self {
            first: memory(first),
            second: memory(second),
            slope: slope(&points),
            descriptors: looks.iter().map(|look| process(look).descriptors).max().unwrap_or(0),
        })
    }

    /// Whether the second half's memory is above the first one's by no more than this part of it.
    pub fn is_flat(&self, most: f64) -> bool {
        self.second as f64 <= self.first as f64 * (1.0 + most)
    }
}

fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let over = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum::<f64>();
    let under = points.iter().map(|point| (point.0 - x).powi(2)).sum::<f64>();
    if under > 0.0 { over / under } else { 0.0 }
}

/// Both processes of a stand.
fn verdicts(course: &Course, plan: &Plan) -> [(&'static str, Option<Verdict>); 2] {
    [
        ("tunica-front", Verdict::of(course, plan, |look| look.front)),
        ("tunicad", Verdict::of(course, plan, |look| look.daemon)),
    ]
}

/// What failed: a process whose memory grew by more than this part, or whose looks are too few to say.
pub(super) fn failures(courses: &[Course], plan: &Plan, most: f64) -> Vec<String> {
    let mut failures = Vec::new();
    for course in courses {
        for (process, verdict) in verdicts(course, plan) {
            let whose = format!("{process} over {}", course.protocol.title());
            match verdict {
                None => failures.push(format!("{whose}: too few looks behind the warm-up")),
                Some(verdict) if !verdict.is_flat(most) => {
                    failures.push(format!("{whose}: {} KiB became {} KiB", verdict.first, verdict.second));
                }
                Some(_) => {}
            }
        }
    }
    failures
}

/// The summary's rows.
pub fn text(courses: &[Course], plan: &Plan) -> String {
    let mut text = "| stand | process | first half, KiB | second half, KiB | growth | slope, KiB a minute | descriptors at most |\n\
                    |---|---|--:|--:|--:|--:|--:|\n"
        .to_owned();
    for course in courses {
        for (process, verdict) in verdicts(course, plan) {
            let Some(Verdict { first, second, slope, descriptors }) = verdict else { continue };
            let growth = 100.0 * (second as f64 / first as f64 - 1.0);
            let _ = writeln!(
                text,
                "| {} | `{process}` | {} | {} | {growth:+.1} % | {slope:+.1} | {} |",
                course.protocol.title(),
                grouped(first),
                grouped(second),
                grouped(descriptors),
            );
        }
    }
    text
}

/// The page.
pub fn markdown(courses: &[Course], plan: &Plan, most: f64) -> String {
    let minutes = plan.length.as_secs() / 60;
    let is_good = failures(courses, plan, most).is_empty();
    let mut page = format!(
        "# Soak: ten times the limits, for long\n\n\
         Written by `cargo xtask soak --minutes {minutes}` on {}.\n\n\
         {}\n\n{}\n## What was done\n\n",
        machine(),
        if is_good {
            format!(
                "Memory stays flat: in no process is the second half's {} above the first half's by more than {} %.",
                plan.judged_by.name(),
                most * 100.0
            )
        } else {
            format!("Memory does not stay flat: {}.", failures(courses, plan, most).join("; "))
        },
        text(courses, plan),
    );
    let _ = write!(
        page,
        "- Two stands at the same time, each with its own `tunicad` and `tunica-front` in a network namespace: one over HTTP with the \
         profile `web`, one over TCP with `messenger` and `pow_tcp`. Puzzles have 8 to 10 bits, so that the flood can pay; every \
         other setting is at its default. The circuit gate enforces. There is no tor: the flood writes what tor would.\n\
         - Each second {FRESH_PER_SECOND} connections come, each of a circuit that was never seen before, ten times the 50 that all circuits may \
         open; {RECURRING_PER_SECOND} come of one circuit, of twenty that take turns of 10 s and are banned most of the time; {SLOW_PER_SECOND} of \
         another such circuit never say all; {PAYERS_PER_SECOND} of fresh circuits solve the puzzle that they are asked. Over HTTP a third one sends \
         {REQUESTS_PER_SECOND} requests a second over one connection, until it is refused. The service takes {} s for a page, so that the places \
         are full, others wait, and the rest must pay.\n\
         - The first {} min are not judged: the table of circuits fills, and so do pools and what the allocator keeps. The rest is cut \
         in two halves of the same length.\n\
         - Why {} %: some {} connections come between the middles of the two halves. A leak of 16 bytes of each would be {} KiB; {} % of \
         the smallest process here is {} KiB, which is more than an allocator's own ups and downs.\n\n",
        SERVICE.as_secs(),
        plan.warm_up.as_secs() / 60,
        most * 100.0,
        grouped(between_the_middles(courses, plan)),
        grouped(between_the_middles(courses, plan) * 16 / 1024),
        most * 100.0,
        grouped(allowance(courses, plan, most)),
    );
    for course in courses {
        let done = course.done;
        let last = course.looks.last().cloned().unwrap_or_default();
        let total = |family: &str| grouped(last.sum(family) as u64);
        let _ = write!(
            page,
            "## {}\n\nThe flood made {} connections in {} s, and {} requests over kept ones; {} found no place. \
             Of puzzles {} were asked, and {} solved and taken. The ingress refused {} streams and requests, the gate {} connections.\n\n\
             | min | connections | `tunica-front`, KiB | descriptors | threads | `tunicad`, KiB | descriptors | circuits | banned | open | waiting | tarpitted |\n\
             |--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
            course.protocol.title(),
            grouped(done.opened),
            grouped(done.seconds),
            grouped(done.requests),
            grouped(done.missed),
            total("tunica_front_puzzles_issued_total"),
            grouped(done.paid),
            total("tunica_front_refused_total"),
            grouped(
                last.series.get("tunica_gate_segments_total{outcome=\"refused\"}").copied().unwrap_or(0.0)
                    as u64
            ),
        );
        for look in shown(&course.looks, plan) {
            let value = |family: &str| grouped(look.sum(family) as u64);
            let _ = writeln!(
                page,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                look.at.as_secs() / 60,
                value("tunica_front_connections_total"),
                grouped(look.front.memory),
                grouped(look.front.descriptors),
                look.front.threads,
                grouped(look.daemon.memory),
                grouped(look.daemon.descriptors),
                value("tunica_circuits_tracked"),
                value("tunica_circuits_banned"),
                value("tunica_front_active"),
                value("tunica_front_waiting"),
                value("tunica_front_tarpitted"),
            );
        }
        page.push('\n');
    }
    page.truncate(page.trim_end().len());
    page.push('\n');
    page
}

/// A look for every fifteenth of the time.
fn shown<'a>(looks: &'a [Look], plan: &Plan) -> impl Iterator<Item = &'a Look> {
    let step = plan.length / 15;
    let mut next = Duration::ZERO;
    looks.iter().filter(move |look| {
        let is_due = look.at >= next;
        if is_due {
            next = look.at - Duration::from_millis(500) + step;
        }
        is_due
    })
}

/// Connections from the middle of the first half to that of the second, at the stand with the fewest.
fn between_the_middles(courses: &[Course], plan: &Plan) -> u64 {
    let half = plan.length.saturating_sub(plan.warm_up) / 2;
    let per_second = courses.iter().map(|course| course.done.opened / course.done.seconds.max(1));
    per_second.min().unwrap_or(0) * half.as_secs()
}

/// What the smallest process may grow by, KiB.
fn allowance(courses: &[Course], plan: &Plan, most: f64) -> u64 {
    let firsts = courses.iter().flat_map(|course| verdicts(course, plan)).filter_map(|(_, verdict)| verdict);
    (firsts.map(|verdict| verdict.first).min().unwrap_or(0) as f64 * most) as u64
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Done, Protocol, Statistic},
        *,
    };

    const PLAN: Plan = Plan {
        length: Duration::from_secs(600),
        warm_up: Duration::from_secs(100),
        every: Duration::from_secs(10),
        table_size: None,
        judged_by: Statistic::Median,
    };

    /// A stand whose ingress holds that much after so many seconds.
    fn course(memory: impl Fn(u64) -> u64) -> Course {
        let look = |seconds: u64| {
            let held = |memory| Held { memory, descriptors: 20, threads: 2 };
            Look {
                at: Duration::from_secs(seconds),
                front: held(memory(seconds)),
                daemon: held(20_000),
                ..Look::default()
            }
        };
        let looks = (1..=60).map(|number| look(10 * number)).collect();
        let done = Done { seconds: 600, opened: 360_000, ..Done::default() };
        Course { protocol: Protocol::Http, looks, done }
    }

    #[test]
    fn what_grows_is_named_and_what_fills_first_is_not() {
        let fills = course(|seconds| if seconds <= 100 { 100 * seconds } else { 10_000 + seconds % 20 });
        assert_eq!(failures(std::slice::from_ref(&fills), &PLAN, 0.05), Vec::<String>::new());
        // 16 bytes of each of 600 connections a second.
        let leaks = course(|seconds| 30_000 + seconds * 600 * 16 / 1024);
        let failed = failures(std::slice::from_ref(&leaks), &PLAN, 0.05);
        assert!(
            matches!(failed.as_slice(), [one] if one.starts_with("tunica-front over HTTP: ")),
            "{failed:?}"
        );
        let verdict = Verdict::of(&leaks, &PLAN, |look| look.front).unwrap();
        assert!((verdict.slope - 562.5).abs() < 2.0, "{verdict:?}");
        assert!(
            markdown(&[leaks], &PLAN, 0.05).contains("Memory does not stay flat: tunica-front over HTTP")
        );
        assert!(markdown(&[fills], &PLAN, 0.05).contains("Memory stays flat"));
        // More connections are open at four looks of five in the second half: nothing leaks by that.
        let waits =
            course(|seconds| if seconds > 350 && !seconds.is_multiple_of(50) { 20_800 } else { 16_900 });
        let lowest = Plan { judged_by: Statistic::Lowest, ..PLAN };
        let leaks = course(|seconds| 30_000 + seconds * 600 * 16 / 1024);
        for (plan, course, is_flat) in
            [(&PLAN, &waits, false), (&lowest, &waits, true), (&lowest, &leaks, false)]
        {
            assert_eq!(failures(std::slice::from_ref(course), plan, 0.05).is_empty(), is_flat);
        }
        let short = Course { looks: Vec::new(), ..course(|_| 1) };
        assert_eq!(failures(&[short], &PLAN, 0.05).len(), 2);
    }
}
