//! What the fuzzing programs share. Each is one call of [`libfuzzer_sys::fuzz_target`] around a target of
//! [`tunica_tests::fuzz`], which says what must hold.

use std::{env, fs, path::Path};

/// Names the folder into which the inputs to start from are written.
pub const SEEDS: &str = "TUNICA_FUZZ_SEEDS";

/// Writes a target's seeds where [`SEEDS`] says.
///
/// # Panics
/// When they cannot be written.
pub fn begin(seeds: fn() -> Vec<Vec<u8>>) {
    let Some(folder) = env::var_os(SEEDS) else { return };
    for (number, seed) in seeds().into_iter().enumerate() {
        let path = Path::new(&folder).join(format!("{number:04}"));
        fs::write(&path, seed).unwrap_or_else(|error| panic!("writing {}: {error}", path.display()));
    }
}
