//! The file of samples: a line for each new circuit, as JSON, for whoever looks for patterns by other means.
//!
//! What a line may hold is [`Sample`]'s: no path, no header, no address, no circuit's number, no relay, and of the time the hour.
//! The file and the one before it, beside it with `.1` behind its name, have at most [`MOST_BYTES`] each. Both are the daemon's and
//! its group's to read (0640). A file that is not the daemon's own, because a link stands in its place, is not written.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions, Permissions, rename},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use serde::Serialize;
use tunica_core::{
    circuit_features::{Feature, Features},
    time::WallTime,
};

/// The name of the file, beside the ledger.
pub const FILE_NAME: &str = "circuits.jsonl";
/// Most bytes of one file.
pub const MOST_BYTES: u64 = 8 * 1024 * 1024;

const MODE: u32 = 0o640;

/// One new circuit, as it leaves the daemon.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// The hour in which its first seconds were over.
    pub hour: String,
    /// A word for it by a secret that this daemon draws when it starts and keeps nowhere.
    pub circuit: String,
    /// Which of 64 classes of paths it asked for first, by a secret of the front's; 64: it asked for nothing.
    pub path_class: u8,
    /// A number for the relay where it met the service, by the secret of [`Self::circuit`]; `None`: not known.
    pub relay_class: Option<u16>,
    /// The load level in force.
    pub level: &'static str,
    /// Whether too many new circuits were alike then.
    pub alike: bool,
    /// How unusual it is; `None`: too little is known.
    pub score: Option<f64>,
    /// What it did, by the names of [`Feature`].
    pub features: serde_json::Map<String, serde_json::Value>,
}

/// The hour of this time.
pub fn hour(now: WallTime) -> String {
    WallTime(now.0 - now.0 % 3_600).to_string()
}

/// Numbers by their names.
pub fn named(features: &Features) -> serde_json::Map<String, serde_json::Value> {
    Feature::ALL
        .iter()
        .zip(features.0)
        .map(|(feature, value)| (feature.name().to_owned(), value.into()))
        .collect()
}

/// Where samples go.
#[derive(Debug, Default)]
pub struct SampleFile {
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl SampleFile {
    /// Writes a line for each sample into the file at `path`.
    ///
    /// # Errors
    /// The system's. What was not written is lost; the next call opens the file anew.
    pub fn append(&mut self, path: &Path, samples: &[Sample]) -> io::Result<()> {
        self.append_within(path, samples, MOST_BYTES)
    }

    /// Writes nothing more until the next [`Self::append`].
    pub fn close(&mut self) {
        self.open = None;
    }

    fn append_within(&mut self, path: &Path, samples: &[Sample], most: u64) -> io::Result<()> {
        // Whoever removed the file wants what comes now in another.
        let mut open = match self.open.take().filter(|open| open.path == path && open.is_there()) {
            Some(open) => open,
            None => Open::at(path)?,
        };
        for sample in samples {
            let mut line = serde_json::to_vec(sample)?;
            line.push(b'\n');
            let bytes = line.len() as u64;
            if open.bytes > 0 && open.bytes.saturating_add(bytes) > most {
                drop(open);
                rename(path, before(path))?;
                open = Open::at(path)?;
            }
            if let Err(error) = open.file.write_all(&line) {
                // No half of a line stays for the next to go on with.
                open.file.set_len(open.bytes)?;
                return Err(error);
            }
            open.bytes = open.bytes.saturating_add(bytes);
        }
        self.open = Some(open);
        Ok(())
    }
}

impl Open {
    fn at(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.create(true).append(true).mode(MODE).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(path)?;
        // Whatever the umask left of it, and whatever the file was before.
        file.set_permissions(Permissions::from_mode(MODE))?;
        let bytes = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, bytes })
    }

    /// Whether its path still leads to it.
    fn is_there(&self) -> bool {
        let place = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        let (there, ours) = (std::fs::symlink_metadata(&self.path), self.file.metadata());
        there.is_ok_and(|there| ours.is_ok_and(|ours| place(there) == place(ours)))
    }
}

/// The file before this one.
fn before(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".1");
    name.into()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn sample(circuit: &str) -> Sample {
        Sample {
            hour: hour(WallTime(1_000_000)),
            circuit: circuit.to_owned(),
            path_class: 9,
            relay_class: None,
            level: "calm",
            alike: false,
            score: Some(1.25),
            features: named(&Features([7; 11])),
        }
    }

    #[test]
    fn a_line_is_one_object_with_every_number_and_the_hour_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let mut file = SampleFile::default();
        file.append(&path, &[sample("a"), sample("b")]).unwrap();
        file.append(&path, &[sample("c")]).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let rows: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(
            rows.iter().map(|row| row["circuit"].as_str().unwrap()).collect::<Vec<_>>(),
            ["a", "b", "c"]
        );
        assert_eq!((&rows[0]["hour"], &rows[0]["score"]), (&"1970-01-12T13:00:00Z".into(), &1.25.into()));
        for feature in Feature::ALL {
            assert_eq!(rows[0]["features"][feature.name()], 7);
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn two_files_of_bounded_size_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let mut file = SampleFile::default();
        for turn in 0..100 {
            file.append_within(&path, &[sample(&turn.to_string())], 1_000).unwrap();
        }
        let mut names: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["circuits.jsonl", "circuits.jsonl.1"]);
        for name in names {
            assert!(fs::metadata(folder.path().join(name)).unwrap().len() <= 1_000);
        }
        assert!(fs::read_to_string(&path).unwrap().contains("\"99\""));
        fs::remove_file(&path).unwrap();
        file.append_within(&path, &[sample("after")], 1_000).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 1);
        // Also where an earlier daemon wrote most of it.
        let mut file = SampleFile::default();
        (0..9).for_each(|_| file.append_within(&path, &[sample("x")], 1_000).unwrap());
        assert!(fs::metadata(&path).unwrap().len() <= 1_000);
    }

    #[test]
    fn a_link_in_its_place_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, elsewhere) = (folder.path().join(FILE_NAME), folder.path().join("elsewhere"));
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        assert!(SampleFile::default().append(&path, &[sample("a")]).is_err());
        assert!(!elsewhere.exists());
    }
}
