//! The file system that a virtual machine starts with: the guest, two devices, a few modules.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// Kinds of files in a mode (inode(7)).
const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// The archive with `guest` as `/init` and, below `/modules`, the modules with a number before the name that keeps their
/// order.
///
/// # Errors
/// When a file cannot be read or is too long for the format.
pub(super) fn build(guest: &Path, modules: &[PathBuf]) -> Result<Vec<u8>> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("reading {}", path.display()));
    let mut archive = Archive::default();
    for folder in ["dev", "modules", "proc", "sys"] {
        archive.add(folder, DIRECTORY | 0o755, (0, 0), &[])?;
    }
    // The kernel opens the console before anything could make it; the numbers are those of its admin-guide/devices.txt.
    archive.add("dev/console", CHARACTER_DEVICE | 0o600, (5, 1), &[])?;
    archive.add("dev/null", CHARACTER_DEVICE | 0o666, (1, 3), &[])?;
    archive.add("init", FILE | 0o755, (0, 0), &read(guest)?)?;
    for (number, module) in modules.iter().enumerate() {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        archive.add(&format!("modules/{number:02}-{name}"), FILE | 0o644, (0, 0), &read(module)?)?;
    }
    archive.finish()
}

/// A cpio archive in the format `newc`, which the kernel unpacks (its driver-api/early-userspace/buffer-format.rst).
#[derive(Debug, Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a file; `device` is major and minor number of a device.
    ///
    /// # Errors
    /// When name or content are too long.
    fn add(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> Result<()> {
        let size = u32::try_from(content.len()).with_context(|| format!("{name} is too long for cpio"))?;
        let name_size = u32::try_from(name.len() + 1).context("a name is too long for cpio")?;
        self.entries += 1;
        let fields = [
            // Files with the same number would be taken for one.
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            device.0,
            device.1,
            name_size,
            0,
        ];
        let header = fields.iter().fold("070701".to_owned(), |mut header, field| {
            // Writing to a string cannot fail.
            let _ = write!(header, "{field:08X}");
            header
        });
        self.bytes.extend(header.bytes());
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
        Ok(())
    }

    /// Header with name, and content, each fill whole words of four bytes.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Result<Vec<u8>> {
        self.add("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.bytes)
    }
}

/// The modules that a module needs, from the key `depends` of its section `.modinfo`, which is a row of strings that end
/// in a zero each.
pub(super) fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"depends=";
    let value = module.split(|byte| *byte == 0).find_map(|text| text.strip_prefix(KEY)).unwrap_or_default();
    let value = String::from_utf8_lossy(value);
    value.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_the_bytes_of_the_format() {
        let mut archive = Archive::default();
        archive.add("a", FILE | 0o644, (0, 0), b"hello").unwrap();
        let expected = "070701\
                        00000001000081A4000000000000000000000001000000000000000500000000\
                        000000000000000000000000\
                        0000000200000000a\0hello\0\0\0";
        assert_eq!(String::from_utf8_lossy(&archive.bytes), expected);
    }

    #[test]
    fn files_of_every_length_stay_apart() {
        let mut archive = Archive::default();
        for length in 0..9 {
            archive.add(&"n".repeat(length + 1), FILE, (0, 0), &vec![b'x'; length]).unwrap();
            assert_eq!(archive.bytes.len() % 4, 0);
        }
        let bytes = archive.finish().unwrap();
        // Read back by the format's rules alone.
        let mut rest = bytes.as_slice();
        let mut seen = Vec::new();
        while !rest.is_empty() {
            let field = |number: usize| {
                let digits = std::str::from_utf8(&rest[6 + 8 * number..14 + 8 * number]).unwrap();
                usize::from_str_radix(digits, 16).unwrap()
            };
            assert_eq!(&rest[..6], b"070701");
            let (size, name_size) = (field(6), field(11));
            seen.push((String::from_utf8_lossy(&rest[110..109 + name_size]).into_owned(), size));
            rest = &rest[(110 + name_size).next_multiple_of(4) + size.next_multiple_of(4)..];
        }
        let expected: Vec<_> =
            (0..9).map(|length| ("n".repeat(length + 1), length)).chain([("TRAILER!!!".into(), 0)]).collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn the_archive_holds_the_guest_its_devices_and_the_modules_in_order() {
        let folder = tempfile::TempDir::new().unwrap();
        let [guest, one, two] = ["guest", "z.ko", "a.ko"].map(|name| folder.path().join(name));
        for file in [&guest, &one, &two] {
            fs::write(file, file.display().to_string()).unwrap();
        }
        let bytes = build(&guest, &[one, two]).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let places: Vec<usize> =
            ["dev/console\0", "init\0", "modules/00-z.ko\0", "modules/01-a.ko\0", "TRAILER!!!\0"]
                .iter()
                .map(|name| text.find(name).unwrap())
                .collect();
        assert!(places.is_sorted(), "{places:?}");
    }

    #[test]
    fn what_a_module_needs_is_read_from_it() {
        let module = b"\x7fELF\0..\0license=GPL\0depends=ptp,pps_core\0retpoline=Y\0";
        assert_eq!(dependencies(module), ["ptp", "pps_core"]);
        assert_eq!(dependencies(b"\0license=GPL\0depends=\0intree=Y\0"), [""; 0]);
        assert_eq!(dependencies(b"no module"), [""; 0]);
    }
}
