//! The soak (`cargo xtask soak`) for a minute: everything in it happens, and nothing grows beyond its bound.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::{sync::atomic::AtomicBool, time::Duration};

use tunica_tests::soak::{self, Plan, Protocol, Statistic};

/// In so short a time a leak shows less, and what the allocator keeps shows more.
const MOST_GROWTH: f64 = 0.15;

#[test]
fn ten_times_the_limits_fill_tables_and_no_more() {
    // A table that is full at once.
    let plan = Plan {
        length: Duration::from_secs(80),
        warm_up: Duration::from_secs(30),
        every: Duration::from_secs(2),
        table_size: Some(4_096),
        judged_by: Statistic::Lowest,
    };
    let courses = soak::run(&plan, &AtomicBool::new(false), |_, _| {}).unwrap();
    soak::judge(&courses, &plan, MOST_GROWTH)
        .unwrap_or_else(|error| panic!("{error:#}\n{}", soak::markdown(&courses, &plan, MOST_GROWTH)));
    assert_eq!(courses.iter().map(|course| course.protocol).collect::<Vec<_>>(), Protocol::ALL);
    for course in &courses {
        let last = course.looks.last().unwrap();
        let page = || soak::markdown(&courses, &plan, MOST_GROWTH);
        assert_eq!(last.sum("tunica_circuits_tracked"), last.sum("tunica_circuits_capacity"), "{}", page());
        for family in [
            "tunica_front_refused_total",
            "tunica_front_puzzles_issued_total",
            "tunica_front_puzzles_solved_total",
            "tunica_circuits_banned",
            "tunica_circuits_new_total",
        ] {
            assert!(last.sum(family) > 0.0, "{family}: {}", page());
        }
        assert!(course.done.paid > 0, "{}", page());
    }
}
