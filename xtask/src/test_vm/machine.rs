//! The emulator: the machine's own QEMU, or Debian's, unpacked into the tree.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{process, setup::apt::PrivateApt};

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";

/// How long a machine may run, from power on to power off. Nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(180);

/// QEMU, ready to be started.
#[derive(Debug)]
pub(super) enum Emulator {
    /// Installed on this machine.
    Installed(PathBuf),
    /// Unpacked into this folder, with its libraries and firmware.
    Unpacked(PathBuf),
}

impl Emulator {
    /// Finds QEMU, or unpacks it below `folder` with whatever it needs that is not installed. To install it could push
    /// another version of QEMU's tools off the machine.
    ///
    /// # Errors
    /// When the package cannot be had.
    pub(super) fn find(folder: &Path) -> Result<Self> {
        if let Some(path) = process::find(PROGRAM)? {
            return Ok(Self::Installed(path));
        }
        let kept = folder.join("qemu");
        if !kept.exists() {
            println!("Downloading Debian's {PACKAGE}; it is unpacked into {}", kept.display());
            let apt = PrivateApt::new(None)?;
            let files = apt.unpack_with_dependencies(PACKAGE)?;
            // Copied and renamed, so that an interrupted copy is never taken for the whole.
            let partial = kept.with_extension("partial");
            if partial.exists() {
                fs::remove_dir_all(&partial).with_context(|| format!("removing {}", partial.display()))?;
            }
            process::capture(process::command("cp")?.arg("-a").arg(&files).arg(&partial))?;
            fs::rename(&partial, &kept).with_context(|| format!("renaming to {}", kept.display()))?;
        }
        Ok(Self::Unpacked(kept))
    }

    fn command(&self) -> Command {
        match self {
            Self::Installed(path) => Command::new(path),
            Self::Unpacked(folder) => {
                let mut command = Command::new(folder.join("usr/bin").join(PROGRAM));
                let libraries =
                    ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|part| folder.join(part));
                let [first, second] = &libraries;
                let mut path = OsString::from(first);
                path.push(":");
                path.push(second);
                command.env("LD_LIBRARY_PATH", path).env("QEMU_MODULE_DIR", first.join("qemu"));
                for firmware in ["usr/share/qemu", "usr/share/seabios"] {
                    command.arg("-L").arg(folder.join(firmware));
                }
                command
            }
        }
    }

    /// Boots `kernel` with `initramfs`, writes the serial console to `console` and waits until the machine is off.
    ///
    /// # Errors
    /// When QEMU cannot be started or fails, or the machine does not end in time; it is then ended.
    pub(super) fn boot(&self, kernel: &Path, initramfs: &Path, console: &Path) -> Result<()> {
        let output = fs::File::create(console).with_context(|| format!("making {}", console.display()))?;
        let errors = output.try_clone().context("sharing the console's file")?;
        let mut command = self.command();
        command
            .args(["-accel", "tcg", "-cpu", "max", "-machine", "pc", "-m", "1024", "-smp", "1"])
            .args(["-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initramfs)
            // A panic ends the machine. What stands behind the two dashes goes to `/init`.
            .args(["-append", "console=ttyS0 loglevel=2 panic=-1 -- machine"])
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors);
        let child = command.spawn().with_context(|| format!("starting {PROGRAM}"))?;
        wait(Running(child), PATIENCE)
    }
}

/// A process that ends with its handle.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail if it has ended already, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait(mut machine: Running, patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        match machine.0.try_wait().context("waiting for the machine")? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => bail!("QEMU failed: {status}"),
            None if Instant::now() > deadline => {
                bail!("the machine was still running after {} s and was ended", patience.as_secs())
            }
            None => thread::sleep(Duration::from_millis(50)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, patience: Duration) -> Result<()> {
        wait(Running(Command::new("sh").args(["-c", script]).spawn().unwrap()), patience)
    }

    #[test]
    fn a_machine_that_does_not_end_is_ended() {
        let error = run("exec sleep 600", Duration::from_millis(100)).unwrap_err().to_string();
        assert!(error.contains("was ended"), "{error}");
    }

    #[test]
    fn a_failing_emulator_is_told_from_a_machine_that_goes_off() {
        assert!(run("exit 0", PATIENCE).is_ok());
        let error = run("exit 3", PATIENCE).unwrap_err().to_string();
        assert!(error.contains("QEMU failed"), "{error}");
    }
}
