//! The processor, played by the handler of the faults that its privileged instructions raise in user mode.
//!
//! Physical addresses are addresses of this process; GS has base 0 for CPU 0 and the distance to the second copy of
//! the per-CPU variables for CPU 1. While "the guest's" FS and GS are loaded, GS points nowhere, so that a use of
//! per-CPU data in that window fails the test.
//!
//! Each thread has its own: a test's is in its [`Bench`], `cpus.rs` has those of programs of many threads.
#![cfg(any(test, feature = "model"))]

use super::{
    extable::fixup,
    kernel::{PERCPU_STRIDE, piece_at},
    system::System,
};
use arch::{CleanBits, SaveArea, Segment, Vmcb, Vmsa, exit::code, msr, vmsa::SEV_ES_ENABLE};
use std::{boxed::Box, cell::Cell, collections::BTreeMap, ptr::null_mut, sync::Once, vec::Vec};

pub use super::bench::Bench;

/// What happened, in order: privileged instructions, mitigation pieces, the return, calls into the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Clgi,
    Stgi,
    Sti,
    Cli,
    Vmload(u64),
    Vmsave(u64),
    Vmrun(u64),
    Rdmsr(u32),
    Wrmsr(u32, u64),
    Xsetbv(u64),
    /// VERW, where it faults.
    Verw,
    WriteDr(u8, u64),
    /// A mitigation piece of the shim was passed.
    Piece(&'static str),
    /// The return thunk, with all sixteen registers.
    Return([u64; 16]),
    /// A fault went to the exception table.
    Fixup,
    /// A function of the kernel was called.
    Call(&'static str),
}

/// The guest's turn: its registers (RSP excluded) and the VMCB of the VMRUN.
pub type Guest = Box<dyn FnMut(&mut [u64; 16], &mut Vmcb) + Send>;

/// The processor and the record of what it did.
pub struct Hardware {
    pub trace: Vec<Op>,
    pub msrs: BTreeMap<u32, u64>,
    pub guest: Guest,
    /// GIF. VMRUN insists on it being clear, and IF set.
    pub gif: bool,
    pub interrupts: bool,
    /// SVM was switched off: SVM's instructions fault.
    pub svm_off: bool,
    pub cpu: u64,
    pub dr: [u64; 4],
    /// XCR0, if it was written.
    pub xcr0: Option<u64>,
    /// What VMLOAD and VMSAVE move, as it is now.
    pub system: System,
    /// Faults to raise though SVM is on: the n-th SVM instruction of the run, from 0, has its bit set.
    pub fail: u32,
    /// SVM instructions so far.
    pub svm_count: u32,
    /// The kernel wants no work done before the guest is entered.
    pub may_enter: bool,
    /// An interrupt for the host is pending.
    pub interrupt: bool,
    /// RFLAGS at VMRUN, which come back at #VMEXIT, and at the return.
    pub flags: [u64; 2],
    /// Clean bits that each VMRUN saw, and the TLB control with the ASID.
    pub entries: Vec<(CleanBits, u8, u32)>,
}

impl Hardware {
    /// A processor that has not run a guest; GS of the calling thread is the host's on it.
    pub fn new(cpu: u64) -> Self {
        install();
        set_gs(host_gs(cpu).base);
        Self {
            trace: Vec::new(),
            msrs: BTreeMap::new(),
            guest: Box::new(|_, vmcb| vmcb.control.exit_code = code::HLT),
            gif: true,
            interrupts: true,
            svm_off: false,
            cpu,
            dr: [0; 4],
            xcr0: None,
            system: System { gs: host_gs(cpu), ..System::pattern(0x40) },
            fail: 0,
            svm_count: 0,
            may_enter: true,
            interrupt: false,
            flags: [0; 2],
            entries: Vec::new(),
        }
    }

    /// An MSR; 0 until it is written.
    pub fn msr(&self, msr: u32) -> u64 {
        self.msrs.get(&msr).copied().unwrap_or(0)
    }

    /// The guest's turn, which may look at the hardware, too.
    fn play(&mut self, regs: &mut [u64; 16], vmcb: &mut Vmcb) {
        let mut guest = core::mem::replace(&mut self.guest, Box::new(|_, _| ()));
        guest(regs, vmcb);
        self.guest = guest;
    }

    /// FS, GS and what else VMLOAD loads are the host's or a guest's now.
    fn set_system(&mut self, system: System, host: bool) {
        self.system = system;
        set_gs(if host { system.gs.base } else { NOWHERE });
    }

    /// VMRUN and #VMEXIT of an SEV-ES guest (APM 15.35, table B-4): registers are swapped through the VMSA, and the
    /// host's come out of the host save area, all of them: what nobody stored there is lost.
    fn run_encrypted(&mut self, vmcb: &mut Vmcb, regs: &mut [i64]) {
        let page = vmcb.control.vmsa_pa;
        let load = |page: u64| {
            // SAFETY: a page with the layout of both, which agree where they overlap.
            unsafe { (System::load(&*(page as *const SaveArea)), (*(page as *const Vmsa)).gprs()) }
        };
        let (system, mut gprs) = load(page);
        self.set_system(system, false);
        self.play(&mut gprs, vmcb);
        // SAFETY: as above.
        unsafe {
            self.system.save(&mut *(page as *mut SaveArea));
            (*(page as *mut Vmsa)).set_gprs(gprs);
        }
        let (system, gprs) = load(super::kernel::host_area(self.cpu) + core::mem::offset_of!(Vmcb, save) as u64);
        self.set_system(system, true);
        for (n, r) in GPRS.into_iter().enumerate().filter(|(n, _)| ![0, 4].contains(n)) {
            regs[r as usize] = gprs[n] as i64;
        }
    }
}

std::thread_local! {
    /// The thread's; nothing to be dropped, so that it is there as long as the thread.
    static HARDWARE: Cell<*mut Hardware> = const { Cell::new(null_mut()) };
}

static INSTALL: Once = Once::new();

/// The handler, once for the process.
fn install() {
    INSTALL.call_once(|| {
        for signal in [libc::SIGSEGV, libc::SIGILL, libc::SIGTRAP] {
            // SAFETY: a plain installation of a handler with the right signature.
            unsafe {
                let mut action: libc::sigaction = core::mem::zeroed();
                action.sa_sigaction = handler as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
                assert_eq!(libc::sigaction(signal, &action, null_mut()), 0);
            }
        }
    });
}

/// The calling thread's hardware from now on, and what it had before.
pub(super) fn give(hardware: Box<Hardware>) -> Option<Box<Hardware>> {
    let before = take();
    HARDWARE.set(Box::into_raw(hardware));
    before
}

/// Takes the thread's hardware away.
pub(super) fn take() -> Option<Box<Hardware>> {
    let hardware = HARDWARE.replace(null_mut());
    // SAFETY: of `give`, and nobody has it any more.
    (!hardware.is_null()).then(|| unsafe { Box::from_raw(hardware) })
}

/// The thread's hardware; it has to have some.
pub fn hw() -> &'static mut Hardware {
    // SAFETY: of `give`, where it stays; a fault interrupts the thread at an instruction that does not touch this.
    unsafe { HARDWARE.get().as_mut() }.expect("hardware")
}

pub fn set_gs(base: u64) {
    const ARCH_SET_GS: libc::c_int = 0x1001;
    // SAFETY: user-space Rust does not use GS.
    assert_eq!(unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base) }, 0);
}

/// GS of the host on a CPU: the distance to its per-CPU variables.
pub fn host_gs(cpu: u64) -> Segment {
    Segment { base: cpu * PERCPU_STRIDE as u64, ..Segment::default() }
}

/// Where GS points while it is the guest's: no address of this process counted from there is canonical.
const NOWHERE: u64 = 0x7fff_ffff_0000;

/// Of one run there are four.
const MOST_FAULTS: usize = 10_000;

/// Order of the registers in machine encoding, as the signal frame names them.
const GPRS: [libc::c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

extern "C" fn handler(signal: libc::c_int, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    if HARDWARE.get().is_null() {
        // Nobody plays here: once the handler returns, it happens again and is fatal.
        // SAFETY: puts the default back.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    // SAFETY: the kernel hands us the frame of the interrupted thread, which is ours to change.
    let regs = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let rip = regs[libc::REG_RIP as usize] as u64;
    // SAFETY: the processor just fetched from there; an instruction has at most 15 bytes and text goes on.
    let insn = unsafe { core::slice::from_raw_parts(rip as *const u8, 4) };
    let hw = hw();
    if let Some(name) = piece_at(rip) {
        // After INT3, RIP is the next byte.
        hw.trace.push(match name {
            "return" => {
                hw.flags[1] = regs[libc::REG_EFL as usize] as u64;
                Op::Return(GPRS.map(|r| regs[r as usize] as u64))
            }
            name => Op::Piece(name),
        });
        return;
    }
    let rax = regs[libc::REG_RAX as usize] as u64;
    let rcx = regs[libc::REG_RCX as usize] as u32;
    let edx_eax = rax & 0xffff_ffff | (regs[libc::REG_RDX as usize] as u64) << 32;
    let svm = matches!(insn, [0x0f, 0x01, 0xd8..=0xdd, ..]);
    let fails = svm && hw.fail >> (hw.svm_count & 31) & 1 != 0;
    hw.svm_count += svm as u32;
    if svm && (hw.svm_off || fails) {
        let Some(to) = fixup(rip) else { die("a fault without exception table entry", insn) };
        if hw.trace.len() > MOST_FAULTS {
            die("faults without end", insn);
        }
        hw.trace.push(Op::Fixup);
        regs[libc::REG_RIP as usize] = to as i64;
        return;
    }
    let length = match insn {
        [0x0f, 0x01, 0xd8, ..] => {
            hw.trace.push(Op::Vmrun(rax));
            hw.flags[0] = regs[libc::REG_EFL as usize] as u64;
            if hw.gif || !hw.interrupts {
                die("VMRUN with GIF set or IF clear", insn);
            }
            // SAFETY: the address of the test's VMCB page.
            let vmcb = unsafe { &mut *(rax as *mut Vmcb) };
            let clean = CleanBits::from_bits_retain(vmcb.control.clean);
            hw.entries.push((clean, vmcb.control.tlb_control, vmcb.control.asid));
            if vmcb.control.np_control & SEV_ES_ENABLE != 0 {
                hw.run_encrypted(vmcb, regs);
                regs[libc::REG_RIP as usize] += 3;
                return;
            }
            let mut guest = GPRS.map(|r| regs[r as usize] as u64);
            (guest[0], guest[4]) = (vmcb.save.rax, vmcb.save.rsp);
            hw.play(&mut guest, vmcb);
            (vmcb.save.rax, vmcb.save.rsp) = (guest[0], guest[4]);
            // RAX, RSP, RIP and RFLAGS the hardware has saved and gives back.
            for (n, r) in GPRS.into_iter().enumerate().filter(|(n, _)| ![0, 4].contains(n)) {
                regs[r as usize] = guest[n] as i64;
            }
            3
        }
        [0x0f, 0x01, 0xda, ..] => {
            hw.trace.push(Op::Vmload(rax));
            let host = super::kernel::host_area(hw.cpu) == rax;
            // SAFETY: the address of a VMCB or of the host save area, a page each.
            hw.set_system(System::load(unsafe { &(*(rax as *const Vmcb)).save }), host);
            3
        }
        [0x0f, 0x01, 0xdb, ..] => {
            hw.trace.push(Op::Vmsave(rax));
            // SAFETY: as for VMLOAD.
            hw.system.save(unsafe { &mut (*(rax as *mut Vmcb)).save });
            3
        }
        [0x0f, 0x01, 0xdc, ..] => {
            hw.trace.push(Op::Stgi);
            hw.gif = true;
            3
        }
        [0x0f, 0x01, 0xdd, ..] => {
            hw.trace.push(Op::Clgi);
            hw.gif = false;
            3
        }
        [0x0f, 0x01, 0xd1, ..] => {
            if hw.gif {
                die("XSETBV where an NMI can come", insn);
            }
            hw.trace.push(Op::Xsetbv(edx_eax));
            hw.xcr0 = Some(edx_eax);
            3
        }
        [0x0f, 0x32, ..] => {
            hw.trace.push(Op::Rdmsr(rcx));
            let value = hw.msr(rcx);
            regs[libc::REG_RAX as usize] = (value & 0xffff_ffff) as i64;
            regs[libc::REG_RDX as usize] = (value >> 32) as i64;
            2
        }
        [0x0f, 0x30, ..] => {
            if hw.gif && matches!(rcx, msr::DEBUGCTL | msr::XSS) {
                die("WRMSR of DEBUGCTL or XSS where an NMI can come", insn);
            }
            hw.trace.push(Op::Wrmsr(rcx, edx_eax));
            hw.msrs.insert(rcx, edx_eax);
            2
        }
        // VERW of an absolute address.
        [0x0f, 0x00, 0x2c, 0x25] => {
            hw.trace.push(Op::Verw);
            8
        }
        [0xfb, ..] => {
            hw.trace.push(Op::Sti);
            hw.interrupts = true;
            1
        }
        [0xfa, ..] => {
            hw.trace.push(Op::Cli);
            hw.interrupts = false;
            1
        }
        [0x0f, 0x23, modrm, ..] => 3 + write_dr(hw, regs, *modrm, 0),
        [rex @ 0x40..=0x4f, 0x0f, 0x23, modrm] => 4 + write_dr(hw, regs, *modrm, rex & 1),
        [0x0f, 0x0b, ..] => {
            // UD2: a test that expects it runs in a child process.
            // SAFETY: ends the process.
            unsafe { libc::_exit(BUG) }
        }
        _ => die("an unexpected fault", insn),
    };
    regs[libc::REG_RIP as usize] += length;
}

/// Exit status of a process that met UD2.
pub const BUG: libc::c_int = 77;

/// MOV to DRn; returns 0, for the caller's sum.
fn write_dr(hw: &mut Hardware, regs: &mut [i64], modrm: u8, rex_b: u8) -> i64 {
    let (n, gpr) = (modrm >> 3 & 7, GPRS[(modrm & 7 | rex_b << 3) as usize] as usize);
    hw.trace.push(Op::WriteDr(n, regs[gpr] as u64));
    if let Some(v) = hw.dr.get_mut(n as usize) {
        *v = regs[gpr] as u64;
    }
    0
}

/// Exit status of a process that met what the model does not allow.
pub const FAULT: libc::c_int = 70;

fn die(what: &str, insn: &[u8]) -> ! {
    let trace = &hw().trace;
    let end = trace.get(trace.len().saturating_sub(40)..);
    let text = std::format!("{what}: {insn:02x?}; the end of the trace: {end:?}\n");
    // SAFETY: past the capture of tests, which is lost with the process; a panic cannot unwind out of a signal frame.
    unsafe {
        libc::write(2, text.as_ptr().cast(), text.len());
        libc::_exit(FAULT)
    }
}
