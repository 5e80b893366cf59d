//! Fuzzes [`tunica_tests::fuzz::pow_token`].
#![no_main]

use tunica_tests::fuzz::pow_token::{check, seeds};

libfuzzer_sys::fuzz_target!(init: tunica_fuzz::begin(seeds), |bytes: &[u8]| check(bytes));
