//! A small disk of its own, so that it can be full or sick.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

/// A mounted file system of 4 MiB; unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts one at `path`, which is made.
    ///
    /// # Errors
    /// If this is not root, or the path exists.
    pub fn mount(path: &Path) -> Result<Self> {
        fs::create_dir(path).with_context(|| format!("making {}", path.display()))?;
        let mut command = Command::new("mount");
        let status = command.args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(path).status()?;
        ensure!(status.success(), "{command:?} ended with {status}");
        Ok(Self { path: path.to_owned() })
    }

    /// Writes until nothing more fits.
    ///
    /// # Errors
    /// If it ends for another reason.
    pub fn fill(&self) -> Result<()> {
        let full = fs::write(self.filler(), vec![0; 8 << 20]);
        ensure!(
            full.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::StorageFull),
            "not full: {full:?}"
        );
        Ok(())
    }

    /// Makes room again.
    ///
    /// # Errors
    /// If it was not filled.
    pub fn free(&self) -> Result<()> {
        fs::remove_file(self.filler()).context("removing the filler")
    }

    /// Makes it read-only, as Linux does with a disk that has errors, or writable again.
    ///
    /// # Errors
    /// If a file is open for writing.
    pub fn set_read_only(&self, is_read_only: bool) -> Result<()> {
        let option = if is_read_only { "remount,ro" } else { "remount,rw" };
        let mut command = Command::new("mount");
        let status = command.args(["-o", option]).arg(&self.path).status()?;
        ensure!(status.success(), "{command:?} ended with {status}");
        Ok(())
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
    }
}
