//! Fuzzes [`tunica_tests::fuzz::pow_challenge`].
#![no_main]

use tunica_tests::fuzz::pow_challenge::{check, seeds};

libfuzzer_sys::fuzz_target!(init: tunica_fuzz::begin(seeds), |bytes: &[u8]| check(bytes));
