//! The part of the emulated host's initial file system that one boot alone has.

use crate::{
    cpio::Archive,
    drive,
    host::{Boot, Flavour},
    image::Tools,
    kernels::Unpacked,
    module,
    modules::Modules,
};
use anyhow::{Result, bail};

/// Modules that are loaded as one with ours or stock's.
const KVM: [&str; 5] = ["irqbypass", "kvm", "kvm-amd", "kvm_amd", "ccp"];

/// The archive with what this boot alone has: init, script, modules and added files. With `spares_one` nothing of the script's runs on
/// the first processor (docs/decisions/0018).
pub fn own_part(tools: &Tools, boot: &Boot, kernel: &Unpacked, spares_one: bool) -> Result<Vec<u8>> {
    // ext4 asks for its checksum by name, and not where modprobe would see it.
    let mut modules = Modules::of(tools, kernel, ["crc32c_generic", "loop", "ext4"])?;
    let drives = if boot.drives.is_empty() { &[][..] } else { &drive::MODULES };
    for name in drives.iter().copied().chain(boot.loaded.iter().map(String::as_str)) {
        modules.add(tools, kernel, name)?;
    }
    match boot.flavour {
        Flavour::Stock => modules.add(tools, kernel, "kvm-amd")?,
        Flavour::None => {}
        Flavour::Ours => {
            let Some(dir) = &boot.ours else { bail!("our modules have not been built") };
            for name in module::MODULES {
                modules.add_file(tools, kernel, &dir.join(name))?;
            }
        }
    }
    let mut archive = Archive::default();
    modules.archive(&mut archive, "modules")?;
    let more = Modules::of(tools, kernel, boot.modules.iter().map(String::as_str))?;
    more.archive(&mut archive, "modules")?;
    let (kvm, others): (Vec<&str>, Vec<&str>) = modules.names().partition(|name| KVM.contains(name));
    let order = if boot.load { modules.names().collect() } else { others };
    archive.file("modules/order", 0o644, order.join("\n").as_bytes())?;
    archive.file("modules/kvm", 0o644, kvm.join("\n").as_bytes())?;
    archive.file("init", 0o755, include_bytes!("../scripts/host-init.sh"))?;
    archive.file("script", 0o755, boot.script.as_bytes())?;
    if boot.flavour == Flavour::Ours {
        // To change over to, and back.
        let stock = Modules::of(tools, kernel, ["kvm-amd"])?;
        stock.archive(&mut archive, "stock")?;
        archive.file("stock/kvm", 0o644, stock.names().collect::<Vec<_>>().join("\n").as_bytes())?;
    }
    if boot.interactive {
        archive.file("interactive", 0o644, b"")?;
    }
    if spares_one {
        archive.file("spare", 0o644, b"")?;
    }
    for (path, from) in &boot.files {
        archive.copy(path, from)?;
    }
    archive.finish()
}
