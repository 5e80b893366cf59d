//! Fuzzes [`tunica_tests::fuzz::proxy_header`].
#![no_main]

use tunica_tests::fuzz::proxy_header::{check, seeds};

libfuzzer_sys::fuzz_target!(init: tunica_fuzz::begin(seeds), |bytes: &[u8]| check(bytes));
