//! Fuzzes [`tunica_tests::fuzz::host_parser`].
#![no_main]

use tunica_tests::fuzz::host_parser::{check, seeds};

libfuzzer_sys::fuzz_target!(init: tunica_fuzz::begin(seeds), |bytes: &[u8]| check(bytes));
