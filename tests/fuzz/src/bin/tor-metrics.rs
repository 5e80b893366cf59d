//! Fuzzes [`tunica_tests::fuzz::tor_metrics`].
#![no_main]

use tunica_tests::fuzz::tor_metrics::{check, seeds};

libfuzzer_sys::fuzz_target!(init: tunica_fuzz::begin(seeds), |bytes: &[u8]| check(bytes));
