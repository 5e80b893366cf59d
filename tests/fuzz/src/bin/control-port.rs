//! Fuzzes [`tunica_tests::fuzz::control_port`].
#![no_main]

use tunica_tests::fuzz::control_port::{check, seeds};

libfuzzer_sys::fuzz_target!(init: tunica_fuzz::begin(seeds), |bytes: &[u8]| check(bytes));
