//! What is run in the emulated AMD host by `./x test`: one entry per scenario, or a file of its own (`files`).
//!
//! Long because: one table.

use crate::{
    crate_tests,
    expected::{self, Expected},
    files, host,
    kernels::{self, Kernel},
    mitigations,
    packaged::Packaged,
    strict, without,
};
use anyhow::Result;
use std::time::Duration;

/// One script for the emulated host, on some kernels.
pub struct Scenario {
    pub name: &'static str,
    pub kernels: &'static [Kernel],
    /// busybox sh; exit status 0 is success.
    pub script: &'static str,
    /// Run on stock kvm-amd too, and compare what was printed.
    pub compare: bool,
    /// With `compare`: lines that may differ.
    pub expected: &'static [Expected],
    /// Binaries of the crate `tests` that the script starts, as /payload/NAME.
    pub payloads: &'static [&'static str],
    /// Load the modules first; if not, the script does, in the order of /modules/kvm.
    pub load: bool,
    /// Further modules of the kernel's own, as /modules/NAME.ko, which the script loads.
    pub modules: &'static [&'static str],
    /// Further modules of the kernel's own, with what they need, which are loaded first.
    pub loaded: &'static [&'static str],
    /// Give the script Debian 13 with these packages installed, as a disk, /dev/sda.
    pub debian: &'static [&'static str],
    /// Give the script files out of Debian's packages.
    pub packaged: &'static [Packaged],
    /// Give the script kernels for 32-bit processors with what `boot-guest` needs beside them, in /guest-686 and /guest-686-pae.
    pub i386_guests: bool,
    /// Give the script QEMU of Debian's backports, in /backports.
    pub qemu_backports: bool,
    /// Give the script a second engine, /modules/hsave_0_2.ko, one that was made for another base, /modules/stranger.ko, and hsavectl.
    pub engines: bool,
    /// Give the script both pairs of modules where packages put them, kmod and hsavectl, and load nothing.
    pub installed: bool,
    /// Give the script the guest's kernel as an ELF file, /guest/vmlinux.
    pub vmlinux: bool,
    /// Give the script what secure boot takes, in /secure.
    pub secure_boot: bool,
    /// Give the script perf and trace-cmd, in /observe.
    pub observe: bool,
    /// Give the script the one of `./x test --here`, /payload/test-here.
    pub here: bool,
    /// The kernels on which it is run only with `--all`, or when asked for by name.
    pub slow: &'static [Kernel],
    /// The host's processor, as QEMU's `-cpu` takes it, and how many.
    pub cpu: &'static str,
    /// Only on the strict processor.
    pub strict: bool,
    /// Only on the processor of Debian's emulator, for what the strict one's has no device of.
    pub plain: bool,
    /// Checks of the strict processor that are off, as bits.
    pub unchecked: u32,
    /// Further words of the host kernel's command line.
    pub cmdline: &'static str,
    pub smp: u32,
    /// Megabytes.
    pub memory: u32,
    /// Further arguments of QEMU.
    pub qemu: &'static [&'static str],
    /// In virtual time: its processors take turns, and it does the same whenever and wherever it runs.
    pub icount: bool,
    /// How long it may take, in the host's time.
    pub timeout: Duration,
    /// About how many seconds it takes, beside another, on two idle cores: to tell how long all will take.
    pub seconds: u32,
}

impl Scenario {
    /// Debian's generic flavour has the same code as the cloud flavour, and other drivers: one guest and each kind of exit are enough
    /// there.
    pub fn runs_on(&self, kernel: Kernel) -> bool {
        let generic = kernel.flavour() == kernels::Flavour::Generic;
        self.kernels.contains(&kernel)
            || self.kernels.contains(&kernel.series()) && (!generic || ["boot-microvm", "exits"].contains(&self.name))
    }
}

/// On all kernels, modules loaded, two processors, three minutes.
pub const fn scenario(name: &'static str, script: &'static str) -> Scenario {
    let timeout = Duration::from_secs(180);
    let (kernels, cpu) = (&kernels::ALL, host::CPU);
    Scenario {
        name,
        kernels,
        script,
        compare: false,
        expected: &[],
        payloads: &[],
        load: true,
        modules: &[],
        loaded: &[],
        debian: &[],
        packaged: &[],
        i386_guests: false,
        qemu_backports: false,
        slow: &[],
        engines: false,
        installed: false,
        vmlinux: false,
        secure_boot: false,
        observe: false,
        here: false,
        cpu,
        strict: false,
        plain: false,
        unchecked: 0,
        cmdline: "",
        smp: 2,
        memory: 4096,
        qemu: &[],
        icount: false,
        timeout,
        seconds: 20,
    }
}

/// In virtual time. For what has one vCPU at a time: several that wait for each other take turns badly, and storms are to meet in ways
/// that turns do not show.
const fn virtual_time(scenario: Scenario) -> Scenario {
    Scenario { icount: true, ..scenario }
}

/// A Linux guest in QEMU, twice from power-on to power-off, its console, disk and network the same as on stock
/// kvm-amd (`boot-guest MACHINE client`).
const fn boot(name: &'static str, script: &'static str) -> Scenario {
    Scenario { compare: true, timeout: Duration::from_secs(600), seconds: 60, ..scenario(name, script) }
}

/// Rows of a board, a kind of interrupt controller and a firmware: each with so many vCPUs.
macro_rules! matrix {
    ($($machine:literal $irqchip:literal $firmware:literal: $($cpus:literal)*;)*) => {
        &[$($(matrix!(@ $cpus $machine $irqchip $firmware),)*)*]
    };
    (@ $cpus:literal $machine:literal $irqchip:literal $firmware:literal) => {
        Scenario {
            slow: &kernels::ALL,
            // With stock's modules the emulator aborts under OVMF: it writes CR8 while a virtual interrupt waits.
            compare: !matches!($firmware.as_bytes(), b"ovmf"),
            ..boot(
                concat!("matrix-", $machine, "-", $irqchip, "-", $firmware, "-", $cpus),
                concat!("CPUS=", $cpus, " IRQCHIP=", $irqchip, " FIRMWARE=", $firmware, " boot-guest ", $machine, " client"),
            )
        }
    };
}

/// Every board of QEMU's with every kind of interrupt controller and firmware that Debian has for it; but what does not
/// work with stock's modules either: the guest of a microvm with `kernel-irqchip=on` waits for its disk's interrupt for
/// ever, and qboot loses its way when a guest with several vCPUs restarts.
pub const MATRIX: &[Scenario] = matrix! {
    "microvm" "split" "seabios": 1 2 4;
    "microvm" "split" "qboot": 1;
    "pc" "on" "seabios": 1 2 4;
    "pc" "on" "ovmf": 1 2 4;
    "pc" "split" "seabios": 1 2 4;
    "pc" "split" "ovmf": 1 2 4;
    "q35" "on" "seabios": 1 2 4;
    "q35" "on" "ovmf": 1 2 4;
    "q35" "split" "seabios": 1 2 4;
    "q35" "split" "ovmf": 1 2 4;
};

/// A program of the crate `tests`.
pub const fn program(name: &'static str, payloads: &'static [&'static str], script: &'static str) -> Scenario {
    Scenario { payloads, ..scenario(name, script) }
}

/// What KVM offers and allows on a processor, line by line as stock's; which does not keep vCPUs in step once the host's TSC
/// counts as unstable, as it may on a loaded machine.
const fn policy(name: &'static str, cpu: &'static str) -> Scenario {
    Scenario {
        compare: true,
        expected: expected::POLICY,
        kernels: &[Kernel::V6_12],
        cpu,
        ..program(
            name,
            &["policy"],
            "/payload/policy || exit 1; dmesg | grep -q 'TSC unstable' && echo 'hsave: void' >/dev/ttyS2; exit 0",
        )
    }
}

/// Words of `-cpu` for a guest of Hyper-V's: libvirt's with all that virt-manager and OpenStack ask for, and Proxmox's. KVM's own
/// leaves are hidden, because Linux prefers them. `used` fails unless the guest has its time and timers from Hyper-V.
macro_rules! hyperv {
    ($script:literal) => {
        concat!(
            "libvirt=host,migratable=on,kvm=off,hv-time=on,hv-relaxed=on,hv-vapic=on,hv-spinlocks=0x1fff,hv-vpindex=on,\
             hv-runtime=on,hv-synic=on,hv-stimer=on,hv-stimer-direct=on,hv-reset=on,hv-frequencies=on,hv-reenlightenment=on,\
             hv-tlbflush=on,hv-tlbflush-ext=on,hv-ipi=on; \
             proxmox=host,kvm=off,hv_ipi,hv_relaxed,hv_reset,hv_runtime,hv_spinlocks=0x1fff,hv_stimer,hv_synic,hv_time,hv_vapic,\
             hv_vpindex,+kvm_pv_eoi,+kvm_pv_unhalt; \
             used() { grep -q 'clock hyperv_clocksource_tsc_page' /tmp/console && grep -q 'uses IPI hypercalls' /tmp/console; }; \
             timers() { used && grep -q 'interrupts HVS' /tmp/console; }; ",
            $script
        )
    };
}

/// What `script` does with the program `vmm`.
macro_rules! vmm {
    ($script:literal) => {
        concat!(
            "vmm() { echo \"vmm $*\"; timeout $((120 * SLOW)) /payload/vmm \"$@\" || exit 1; }; initrd=/guest/initrd; ",
            $script
        )
    };
}

const fn vmm(name: &'static str, script: &'static str) -> Scenario {
    let scenario = Scenario { vmlinux: true, timeout: Duration::from_secs(400), ..program(name, &["vmm"], script) };
    Scenario { seconds: 90, ..scenario }
}

/// Loads the modules on a processor they must refuse: the last one fails, and nothing is left behind.
const REFUSED: &str = "for module in $(cat /modules/kvm); do insmod /modules/$module.ko 2>/tmp/error; \
     status=$?; done; echo $module $status $(sed 's/.*: //' /tmp/error); \
     [ -e /dev/kvm ] && { echo '/dev/kvm is there'; exit 1; }; grep -q ^kvm_amd /proc/modules && exit 2; exit 0";

/// For `slow`.
const BUT_6_12: &[Kernel] = &[Kernel::V6_1, Kernel::V7_3];

/// Without `--all` on 6.12 only: what needs no look at each kernel at every change.
const fn on_6_12(scenario: Scenario) -> Scenario {
    Scenario { slow: BUT_6_12, ..scenario }
}

/// All others, in the order in which they are started.
pub const ALL: &[Scenario] = &[
    on_6_12(virtual_time(boot("boot-microvm", "boot-guest microvm check"))),
    Scenario {
        slow: &[Kernel::V6_12, Kernel::V7_3],
        ..boot("boot-q35-split", "CPUS=2 IRQCHIP=split boot-guest q35 client")
    },
    Scenario { slow: &[Kernel::V6_1, Kernel::V6_12], ..boot("boot-pc-split", "IRQCHIP=split boot-guest pc check") },
    Scenario { slow: &kernels::ALL, ..boot("boot-q35", "CPUS=2 boot-guest q35 client") },
    Scenario { slow: BUT_6_12, ..boot("boot-pc", "CPUS=4 boot-guest pc client") },
    // As a guest of Hyper-V's, with the words that libvirt and Proxmox write: time, timers, interrupts and flushes are Hyper-V's.
    Scenario {
        slow: BUT_6_12,
        expected: expected::HYPERV,
        timeout: Duration::from_secs(900),
        seconds: 150,
        ..boot(
            "boot-hyperv",
            hyperv!(
                "CPU=$libvirt CPUS=2 boot-guest q35 client && rm -r /tmp/* && CPU=$proxmox IRQCHIP=split boot-guest pc check"
            ),
        )
    },
    // With hv_passthrough the vendor is KVM's, by which Linux does not know Hyper-V: the words are what is seen.
    Scenario {
        slow: &kernels::ALL,
        expected: expected::HYPERV,
        timeout: Duration::from_secs(900),
        seconds: 150,
        ..boot(
            "boot-hyperv-8",
            hyperv!(
                "CPU=$libvirt CPUS=8 boot-guest q35 client && timers && rm -r /tmp/* && \
                 CPU=host,hv_passthrough CPUS=2 boot-guest q35 check"
            ),
        )
    },
    Scenario {
        slow: &kernels::ALL,
        timeout: Duration::from_secs(600),
        seconds: 150,
        ..scenario("migrate-hyperv", hyperv!("CPU=$libvirt CPUS=2 CHANGE=yes boot-guest q35 moves && timers"))
    },
    // Live migration by QEMU, and snapshots in files; the second guest changes to stock's modules and back.
    Scenario {
        slow: BUT_6_12,
        timeout: Duration::from_secs(600),
        seconds: 150,
        ..scenario(
            "migrate",
            "CPUS=2 boot-guest q35 moves && rm -r /tmp/* && CHANGE=yes IRQCHIP=split boot-guest pc moves",
        )
    },
    // The way of Firecracker and Cloud Hypervisor: no firmware.
    Scenario {
        slow: &[Kernel::V6_1, Kernel::V6_12],
        ..vmm(
            "vmm",
            vmm!(
                "vmm boot /guest/vmlinuz $initrd bzimage irqchip 1; vmm boot /guest/vmlinuz $initrd bzimage split 2; \
                 vmm boot /guest/vmlinux $initrd pvh split 1; vmm boot /guest/vmlinux $initrd pvh irqchip 2"
            ),
        )
    },
    // Paused and saved, changes saved after a while, and on in another process.
    Scenario {
        slow: BUT_6_12,
        ..vmm(
            "vmm-snapshot",
            vmm!(
                "moved() { vmm save /tmp/saved \"$@\"; vmm restore /tmp/saved; rm -r /tmp/saved; }; \
                 moved /guest/vmlinuz $initrd bzimage irqchip 1; moved /guest/vmlinuz $initrd bzimage split 2; \
                 moved /guest/vmlinux $initrd pvh irqchip 2"
            ),
        )
    },
    policy("policy", host::CPU),
    // The newest processor that can be emulated, with 57-bit addresses; and one from before XSAVE.
    policy("policy-max", "max,+svm,+npt"),
    Scenario { slow: &kernels::ALL, ..policy("policy-opteron", "Opteron_G3,+svm,+npt") },
    // Every trace event that there is, as stock's of the same kernel; and what a guest that does each thing once leaves in a trace.
    Scenario {
        compare: true,
        expected: expected::TRACE,
        slow: BUT_6_12,
        ..program(
            "trace",
            &["trace"],
            "mount -t tracefs tracefs /sys/kernel/tracing; /payload/trace formats && /payload/trace",
        )
    },
    // The tools themselves: what they print of each kind of exit of the same guest, without times.
    Scenario {
        observe: true,
        slow: &kernels::ALL,
        compare: true,
        expected: expected::PERF,
        kernels: &[Kernel::V6_12],
        timeout: Duration::from_secs(600),
        ..program("perf-kvm", &["trace"], include_str!("../scripts/perf-kvm.sh"))
    },
    // Statistics in debugfs and uevents of VMs: names, modes, and what they look like, while there is a VM with two vCPUs and after.
    Scenario {
        compare: true,
        expected: expected::DEBUGFS,
        slow: BUT_6_12,
        ..program("debugfs", &["trace"], "mount -t debugfs debugfs /sys/kernel/debug; /payload/trace debugfs")
    },
    // The interrupt controllers in the kernel, answer by answer as stock's.
    Scenario {
        compare: true,
        expected: expected::CHIPS,
        kernels: &[Kernel::V6_12],
        ..program("chips", &["chips"], "/payload/chips")
    },
    // The parameters of both modules, and what QEMU misses for its named processors: as with stock's. Proxmox's
    // x86-64-v2-AES is made of qemu64.
    Scenario {
        compare: true,
        expected: expected::PARAMETERS,
        kernels: &[Kernel::V6_12],
        ..scenario(
            "models",
            "for m in kvm kvm_amd; do for f in /sys/module/$m/parameters/*; do \
             echo \"$m ${f##*/} $(stat -c %a $f) $(cat $f)\"; done; done; \
             for m in EPYC EPYC-Rome qemu64,+aes,+popcnt,+pni,+sse4.1,+sse4.2,+ssse3 qemu64; do \
             echo quit | timeout $((60 * SLOW)) qemu-system-x86_64 -accel kvm -cpu $m,enforce -nodefaults -display none -S \
             -monitor stdio >/tmp/said 2>&1; echo \"$m: $?\"; grep -v '^QEMU\\|^(qemu)' /tmp/said; done; true",
        )
    },
    // What the emulator does with each opcode on a device, as stock's.
    Scenario {
        compare: true,
        expected: expected::EMULATED,
        kernels: &[Kernel::V6_12],
        timeout: Duration::from_secs(600),
        seconds: 100,
        ..program("emulated", &["emulated"], "/payload/emulated")
    },
    // What user space sees and sets of a vCPU at each kind of exit, with events on their way, under a debugger: as on stock.
    Scenario {
        compare: true,
        expected: expected::STATE,
        kernels: &[Kernel::V6_12],
        timeout: Duration::from_secs(600),
        ..program("state", &["state"], "/payload/state")
    },
    // Test by test, each in a process of its own: what came of it.
    Scenario {
        compare: true,
        kernels: &[Kernel::V6_12],
        ..program(
            "kvm-ioctls-tests",
            &[crate_tests::NAME],
            "cd /tmp; suite=/payload/kvm-ioctls-tests; $suite --list --format terse | sed -n 's/: test$//p' >list; \
             [ $(wc -l <list) -ge 70 ] || exit 1; while read -r name; do timeout $((60 * SLOW)) $suite --exact \"$name\" \
             --test-threads 1 >said 2>&1 </dev/null; status=$?; echo \"$name: $status\"; \
             [ $status = 0 ] || sed 's/^/  /' said >/dev/ttyS0; done <list",
        )
    },
    // MSRs that do not exist, as the module's parameters have it: 0xc0011fff is none; and those that do nothing.
    on_6_12(program(
        "ignored-msrs",
        &["policy"],
        "p=/sys/module/kvm/parameters; [ $(cat $p/ignore_msrs) = N ] && [ $(cat $p/report_ignored_msrs) = Y ] || exit 1; \
         /payload/policy user-writes >/dev/null; \
         dmesg | grep -q 'kvm \\[[0-9]*\\]: vcpu0, guest rIP: 0x.* Unhandled WRMSR(0x.*) = 0x' || exit 6; \
         /payload/policy guest-reads | grep -q c0011fff && exit 2; echo Y >$p/ignore_msrs; \
         /payload/policy guest-reads | grep -q 'guest reads msr c0011fff: 0' || exit 3; \
         n=$(dmesg | grep -c 'ignored rdmsr: 0x'); [ $n -gt 0 ] || exit 4; echo N >$p/report_ignored_msrs; \
         sleep 6; /payload/policy guest-reads >/dev/null; [ $(dmesg | grep -c 'ignored rdmsr: 0x') = $n ] || exit 5",
    )),
    virtual_time(program("exits", &["exits"], "/payload/exits")),
    // With somewhere to page to.
    Scenario {
        slow: &[Kernel::V6_12],
        ..program(
            "memory",
            &["memory"],
            "dd if=/dev/zero of=/tmp/swap bs=1M count=128 2>/dev/null; losetup /dev/loop7 /tmp/swap && mkswap /dev/loop7 \
         >/dev/null && swapon /dev/loop7 || exit 1; /payload/memory || exit 1; swapoff /dev/loop7",
        )
    },
    // A VMM that dies while a page is on its way that nobody brings leaves nothing behind that would keep the modules.
    on_6_12(program(
        "async-pf",
        &["async_pf"],
        "/payload/async_pf || exit 1; /payload/async_pf uncounted || exit 4; /payload/async_pf starved || exit 5; /payload/async_pf abandon & pid=$!; for i in $(seq 30); do sleep 1; \
         kill -0 $pid 2>/dev/null || break; done; kill -0 $pid 2>/dev/null && exit 2; rmmod kvm_amd kvm || exit 3; insmod /modules/kvm.ko && insmod /modules/kvm-amd.ko && \
         h=$(/payload/async_pf held); rmmod kvm_amd && insmod /modules/kvm-amd.ko && kill $h && rmmod kvm_amd kvm || exit 6",
    )),
    on_6_12(program("lifecycle", &["lifecycle"], "/payload/lifecycle")),
    Scenario { slow: &[Kernel::V6_12], ..program("trouble", &["trouble"], "/payload/trouble") },
    // Allocations that fail: only a kernel with fault injection has them.
    Scenario {
        kernels: &[Kernel::V6_12Debug],
        engines: true,
        ..program("faults", &["faults"], "insmod /modules/hsave_0_2.ko && /payload/faults && rmmod hsave_0_2")
    },
    // Storms at random; the seed is printed first. User space sets state that does not go together, interrupt shadows among it.
    Scenario {
        slow: &[Kernel::V6_1, Kernel::V6_12],
        unchecked: strict::SHADOW,
        ..program("stress", &["stress"], "/payload/stress")
    },
    // And with what other modules' modprobe.d may have for stock's.
    on_6_12(virtual_time(scenario(
        "load-unload",
        "for i in 1 2 3; do rmmod kvm_amd && rmmod kvm || exit 1; [ ! -e /dev/kvm ] || exit 2; \
         insmod /modules/kvm.ko && insmod /modules/kvm-amd.ko || exit 3; [ -c /dev/kvm ] || exit 4; done; \
         for word in auto force never off; do rmmod kvm_amd && rmmod kvm && insmod /modules/kvm.ko nx_huge_pages=$word && \
         insmod /modules/kvm-amd.ko avic=auto nested=1 || exit 5; p=/sys/module; \
         [ $(cat $p/kvm/parameters/nx_huge_pages $p/kvm_amd/parameters/avic $p/kvm_amd/parameters/nested | tr -d '\\n') = NN0 ] \
         || exit 6; done",
    ))),
    Scenario {
        load: false,
        slow: BUT_6_12,
        cpu: "EPYC,-svm",
        compare: true,
        ..virtual_time(scenario("refused-without-svm", REFUSED))
    },
    // Stock falls back to shadow paging, which is not here.
    Scenario {
        load: false,
        slow: BUT_6_12,
        cpu: "EPYC,+svm,-npt",
        ..virtual_time(scenario("refused-without-npt", REFUSED))
    },
    // The report comes first, because there is nobody left to write it: the host restarts under a guest.
    on_6_12(scenario(
        "reboot",
        "boot-guest microvm check >/tmp/log 2>&1 & while ! grep -q 'Booting paravirt' /tmp/log; do sleep 1; done; \
         echo 'hsave: exit 0' >/dev/ttyS2; sync; reboot -f; sleep 60",
    )),
];

/// Those of all tables and files.
pub fn every() -> Result<impl Iterator<Item = &'static Scenario>> {
    let files = files::scenarios()?;
    Ok(ALL.iter().chain(mitigations::ALL).chain(without::ALL).chain(MATRIX).chain(files))
}

/// Binaries of the crate `tests` that are no scenario of their own.
pub const NOT_SCENARIOS: &[&str] = &["bench", "heartbeat", "panicking"];
