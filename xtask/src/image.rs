//! What the emulated AMD host has on board: Debian's QEMU, busybox, a Linux guest and the modules.

use crate::{
    cpio::Archive,
    debs::TRIXIE,
    env::{Env, key},
    foreign::Libraries,
    kernels::{self, Kernel},
    modules::Modules,
    proc, ui,
};
use anyhow::{Context, Result};
use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::Command,
};

/// The kernel that guests run, whatever the host runs.
pub const GUEST_KERNEL: Kernel = Kernel::V6_12;

/// Debian 13's QEMU with its firmware, busybox and strace, unpacked: they emulate the host and run inside it.
pub struct Tools {
    root: PathBuf,
    key: String,
}

impl Tools {
    pub fn fetch(env: &Env) -> Result<Self> {
        let packages = TRIXIE.closure(env, &["qemu-system-x86", "busybox-static", "strace", "ovmf"])?;
        let key = key(&[&packages.join(" ")]);
        let root = env.artifact(&format!("tools/{key}"), |dir| {
            ui::step("Debian's QEMU into the cache", || TRIXIE.unpack(env, &packages, dir))
        })?;
        Ok(Self { root, key })
    }

    pub fn busybox(&self) -> PathBuf {
        self.root.join("usr/bin/busybox")
    }

    /// QEMU for this machine, with its own libraries, modules and firmware.
    pub fn qemu(&self) -> Command {
        self.emulator(&self.root.join("usr/bin/qemu-system-x86_64"))
    }

    /// Another build of the same QEMU, with the same libraries and firmware.
    pub fn emulator(&self, program: &Path) -> Command {
        let mut qemu = Libraries::new(&self.root).command(program);
        qemu.env("QEMU_MODULE_DIR", self.root.join("usr/lib/x86_64-linux-gnu/qemu"));
        for dir in ["usr/share/qemu", "usr/share/seabios"] {
            qemu.arg("-L").arg(self.root.join(dir));
        }
        qemu
    }

    /// The shared libraries of a program in the tree, as paths in it.
    fn libraries(&self, program: &str) -> Result<Vec<PathBuf>> {
        let mut list = Libraries::new(&self.root).command(Path::new("--list"));
        let text = proc::run(list.arg(self.root.join(program)))?;
        let path = |line: &str| line.split_once("=> ")?.1.split(' ').next().map(PathBuf::from);
        Ok(text.lines().filter_map(path).collect())
    }
}

/// The part of the host's file system that depends on no kernel, cached.
pub fn base(env: &Env, tools: &Tools) -> Result<PathBuf> {
    let guest = kernels::fetch(env, GUEST_KERNEL)?;
    let (init, boot) = (include_str!("../scripts/guest-init.sh"), include_str!("../scripts/boot-guest.sh"));
    let upgrade = include_str!("../scripts/upgrade-guest.sh");
    let (disk, debian) = (include_str!("../scripts/boot-disk.sh"), include_str!("../scripts/in-debian.sh"));
    let words = [init, boot, upgrade, disk, debian].concat();
    let key = key(&[&tools.key, &guest.release, &words, include_str!("image.rs")]);
    let dir = env.artifact(&format!("images/{key}"), |dir| {
        ui::step("file system of the emulated host", || {
            let mut archive = Archive::default();
            programs(&mut archive, tools)?;
            archive.copy("guest/vmlinuz", &guest.image)?;
            archive.file("guest/initrd", 0o644, &guest_initrd(tools, &guest, &tools.busybox())?)?;
            archive.file("guest/pattern", 0o644, &pattern())?;
            archive.file("usr/bin/upgrade-guest", 0o755, upgrade.as_bytes())?;
            archive.file("usr/bin/boot-guest", 0o755, include_bytes!("../scripts/boot-guest.sh"))?;
            archive.file("usr/bin/in-debian", 0o755, include_bytes!("../scripts/in-debian.sh"))?;
            archive.file("usr/bin/boot-disk", 0o755, include_bytes!("../scripts/boot-disk.sh"))?;
            Ok(fs::write(dir.join("base.cpio"), archive.finish()?)?)
        })
    })?;
    Ok(dir.join("base.cpio"))
}

fn programs(archive: &mut Archive, tools: &Tools) -> Result<()> {
    let root = &tools.root;
    archive.copy("bin/busybox", &tools.busybox())?;
    let mut libraries = Vec::new();
    for program in ["usr/bin/qemu-system-x86_64", "usr/bin/strace"] {
        archive.copy(program, &root.join(program))?;
        libraries.extend(tools.libraries(program)?);
    }
    // What Rust programs and pthread cancellation ask for at run time.
    libraries.push(root.join("usr/lib/x86_64-linux-gnu/libgcc_s.so.1"));
    libraries.sort();
    libraries.dedup();
    for library in libraries {
        let name = library.file_name().context("a library has a name")?.to_string_lossy().into_owned();
        archive.copy(&format!("usr/lib/x86_64-linux-gnu/{name}"), &library)?;
    }
    archive.link("lib", "usr/lib")?;
    archive.copy("lib64/ld-linux-x86-64.so.2", &root.join("usr/lib64/ld-linux-x86-64.so.2"))?;
    let needed = |name: &str| {
        [
            "kvmvapic.bin",
            "linuxboot.bin",
            "linuxboot_dma.bin",
            "multiboot.bin",
            "multiboot_dma.bin",
            "pvh.bin",
            "qboot.rom",
        ]
        .contains(&name)
            || name == "efi-virtio.rom"
    };
    archive.copy_dir("usr/share/qemu", &root.join("usr/share/qemu"), needed)?;
    let bios = |name: &str| !name.ends_with(".aml");
    archive.copy_dir("usr/share/seabios", &root.join("usr/share/seabios"), bios)?;
    for name in ["OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"] {
        archive.copy(&format!("usr/share/OVMF/{name}"), &root.join("usr/share/OVMF").join(name))?;
    }
    // Programs look users up.
    archive.file("etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/sh\n")?;
    archive.file("etc/group", 0o644, b"root:x:0:\n")
}

/// The guest's initial file system: a busybox that it can run, the virtio and file-system modules, its init.
pub fn guest_initrd(tools: &Tools, guest: &kernels::Unpacked, busybox: &Path) -> Result<Vec<u8>> {
    let mut modules = Modules::default();
    for name in ["virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net", "ext4"] {
        modules.add(tools, guest, name)?;
    }
    let mut archive = Archive::default();
    archive.copy("bin/busybox", busybox)?;
    archive.file("init", 0o755, include_bytes!("../scripts/guest-init.sh"))?;
    modules.archive(&mut archive, "modules")?;
    archive.file("modules/order", 0o644, modules.names().collect::<Vec<_>>().join("\n").as_bytes())?;
    archive.finish()
}

/// The guest's kernel as an ELF file: what the bzImage holds, compressed with zstd (Linux's boot protocol, the fields
/// payload_offset and payload_length; the length of what comes out follows the compressed data).
pub fn vmlinux(env: &Env) -> Result<PathBuf> {
    let guest = kernels::fetch(env, GUEST_KERNEL)?;
    let dir = env.artifact(&format!("vmlinux/{}", guest.release), |dir| {
        let image = fs::read(&guest.image)?;
        let field = |at: usize| -> Result<usize> {
            let bytes = image.get(at..at + 4).context("the kernel image is too short")?;
            Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
        };
        let setup = (usize::from(*image.get(0x1f1).context("the kernel image is too short")?) + 1) * 512;
        let (start, length) = (setup + field(0x248)?, field(0x24c)?);
        let payload = image.get(start..start + length - 4).context("the kernel image is cut off")?;
        let mut decoder = ruzstd::decoding::StreamingDecoder::new(payload).context("the kernel is not in zstd")?;
        let mut kernel = Vec::new();
        decoder.read_to_end(&mut kernel)?;
        Ok(fs::write(dir.join("vmlinux"), kernel)?)
    })?;
    Ok(dir.join("vmlinux"))
}

/// Two megabytes of text that no compression or block cache gets right by accident: numbered lines of
/// a xorshift sequence.
pub fn pattern() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut text = String::new();
    for line in 0..65_536 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        text += &format!("{line:08} {state:016x} hsave\n");
    }
    text.into_bytes()
}
