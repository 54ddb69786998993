//! Disks of the emulated host's.

use std::path::PathBuf;

/// A disk of the emulated host's.
#[derive(Clone, Debug)]
pub struct Drive {
    pub path: PathBuf,
    /// As QEMU names it: raw, qcow2, ...
    pub format: &'static str,
    pub access: Access,
}

/// What becomes of what the host writes to a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// It cannot write: a CD-ROM, /dev/sr0.
    ReadOnly,
    /// It is lost at the end.
    Forgotten,
    /// It is in the file.
    Kept,
}

impl Drive {
    /// The words of QEMU's command line that make it the disk of that number: on the first IDE channel of the board pc, which both
    /// emulators have, so that Linux finds them in this order.
    pub fn words(&self, number: usize) -> [String; 4] {
        // A comma in a value is written twice.
        let file = self.path.display().to_string().replace(',', ",,");
        let (access, device) = match self.access {
            Access::ReadOnly => (",readonly=on,media=cdrom", "ide-cd"),
            Access::Forgotten => (",snapshot=on", "ide-hd"),
            Access::Kept => ("", "ide-hd"),
        };
        let drive = format!("file={file},format={},if=none,id=drive{number}{access}", self.format);
        let device = format!("{device},drive=drive{number},bus=ide.{},unit={}", number / 2, number % 2);
        ["-drive".to_owned(), drive, "-device".to_owned(), device]
    }
}

/// What a host with disks needs.
pub const MODULES: [&str; 3] = ["ata_piix", "sd_mod", "sr_mod"];
