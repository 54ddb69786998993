//! Runs one instruction on the processor in 16 or 32-bit protected mode: segments in the process's LDT that confine it to
//! mapped code and data, and INT3 everywhere it may land.

use std::arch::asm;
use std::mem::offset_of;

/// Where code, data, stack and the context are mapped: below 4 GiB, as far jumps between the modes need.
pub const CODE: u64 = 0x1000_0000;
pub const DATA: u64 = 0x2000_0000;
pub const DATA_LEN: usize = 0x2000;
const CTX: u64 = 0x3000_0000;
/// Where in the code segment the instruction is.
pub const START: usize = 0x800;
/// Length of the code segment.
pub const CODE_LEN: usize = 0x1000;

/// The descriptors in the LDT, by index.
pub mod entry {
    pub const CODE16: u16 = 0;
    pub const CODE32: u16 = 1;
    pub const DATA32: u16 = 2;
    pub const DATA16: u16 = 3;
    pub const READ_ONLY: u16 = 4;
    /// Offsets 0xe000 to 0xffff are the data.
    pub const EXPAND_DOWN: u16 = 5;
    pub const EXECUTE_ONLY: u16 = 6;
    pub const ABSENT: u16 = 7;
    pub const COUNT: u16 = 8;
}

/// The selector of a descriptor.
pub const fn selector(entry: u16) -> u16 {
    entry << 3 | 7
}

/// State that goes into and comes out of a run. At `CTX`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// RAX to RDI; only the low halves mean something.
    pub gpr: [u64; 8],
    pub flags: u64,
    pub ds: u64,
    pub es: u64,
    pub ss: u64,
    pub cs: u64,
    /// Offset of the instruction that would be next, or that faulted.
    pub rip: u64,
    pub signal: u64,
    saved_rsp: u64,
    saved_ss: u64,
    exit: u64,
    /// Far pointer: offset and selector.
    target: [u32; 2],
}

impl Context {
    pub fn new(gpr: [u64; 8], flags: u64, [cs, ss, ds, es]: [u16; 4]) -> Context {
        let target = [START as u32, cs.into()];
        let (cs, ss, ds, es) = (cs.into(), ss.into(), ds.into(), es.into());
        let (rip, signal, saved_rsp, saved_ss, exit) = (0, 0, 0, 0, 0);
        Context { gpr, flags, ds, es, ss, cs, rip, signal, saved_rsp, saved_ss, exit, target }
    }
}

extern "C" fn on_signal(signal: libc::c_int, _: *mut libc::siginfo_t, ucontext: *mut libc::c_void) {
    let ucontext = ucontext.cast::<libc::ucontext_t>();
    // SAFETY: the kernel passes a valid ucontext to an SA_SIGINFO handler; the context page is mapped for the life of
    // the process before the handler is installed, and only the thread that runs `native` uses it.
    unsafe {
        let regs = &mut (*ucontext).uc_mcontext.gregs;
        let ctx = CTX as *mut Context;
        let selectors = regs[libc::REG_CSGSFS as usize] as u64;
        let cs = selectors & 0xffff;
        if cs & 4 == 0 {
            libc::abort(); // Not the instruction's doing.
        }
        let rip = regs[libc::REG_RIP as usize] as u64;
        // INT3 is behind it.
        (*ctx).rip = if signal == libc::SIGTRAP { rip.wrapping_sub(1) } else { rip };
        ((*ctx).signal, (*ctx).cs, (*ctx).ss) = (signal as u64, cs, selectors >> 48);
        (*ctx).flags = regs[libc::REG_EFL as usize] as u64;
        let order = [
            libc::REG_RAX,
            libc::REG_RCX,
            libc::REG_RDX,
            libc::REG_RBX,
            libc::REG_RSP,
            libc::REG_RBP,
            libc::REG_RSI,
            libc::REG_RDI,
        ];
        for (to, from) in (*ctx).gpr.iter_mut().zip(order) {
            *to = regs[from as usize] as u64;
        }
        regs[libc::REG_RIP as usize] = (*ctx).exit as i64;
        regs[libc::REG_RSP as usize] = (*ctx).saved_rsp as i64;
        regs[libc::REG_EFL as usize] = 0x202;
        let rest = selectors & 0x0000_ffff_ffff_0000;
        regs[libc::REG_CSGSFS as usize] = (rest | 0x33 | (*ctx).saved_ss << 48) as i64;
    }
}

/// A descriptor as modify_ldt(2) takes it.
#[repr(C)]
struct UserDesc {
    entry_number: u32,
    base: u32,
    limit: u32,
    flags: u32,
}

const BIG: u32 = 1;
const EXPANDS_DOWN: u32 = 1 << 1;
const CODE_SEGMENT: u32 = 2 << 1;
const NO_WRITE_OR_READ: u32 = 1 << 3;
const NOT_PRESENT: u32 = 1 << 5;
const USEABLE: u32 = 1 << 6;

/// Maps the areas, fills the LDT and takes the signals that faults become. None: the kernel has no LDT for processes.
/// Else the descriptors as the processor sees them.
pub fn prepare() -> Option<[[u8; 8]; entry::COUNT as usize]> {
    let data_limit = DATA_LEN as u32 - 1;
    let (code, data) = (CODE as u32, DATA as u32);
    let table = [
        (entry::CODE16, code, CODE_LEN as u32 - 1, CODE_SEGMENT),
        (entry::CODE32, code, CODE_LEN as u32 - 1, CODE_SEGMENT | BIG),
        (entry::DATA32, data, data_limit, BIG),
        (entry::DATA16, data, data_limit, 0),
        (entry::READ_ONLY, data, data_limit, BIG | NO_WRITE_OR_READ),
        (entry::EXPAND_DOWN, data + DATA_LEN as u32 - 0x1_0000, 0xffff - DATA_LEN as u32, EXPANDS_DOWN),
        (entry::EXECUTE_ONLY, code, CODE_LEN as u32 - 1, CODE_SEGMENT | BIG | NO_WRITE_OR_READ),
        (entry::ABSENT, data, data_limit, BIG | NOT_PRESENT),
    ];
    for (n, base, limit, flags) in table {
        let desc = UserDesc { entry_number: n.into(), base, limit, flags: flags | USEABLE };
        // SAFETY: the kernel reads the structure; nothing else in this process uses the LDT.
        if unsafe { libc::syscall(libc::SYS_modify_ldt, 0x11, &desc, size_of::<UserDesc>()) } != 0 {
            return None;
        }
    }
    let mut raw = [[0; 8]; entry::COUNT as usize];
    // SAFETY: the kernel writes at most as many bytes.
    let got = unsafe { libc::syscall(libc::SYS_modify_ldt, 0, raw.as_mut_ptr(), size_of_val(&raw)) };
    assert_eq!(got as usize, size_of_val(&raw));

    let map = |at: u64, len: usize, prot: i32| {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: a fixed mapping that does not replace another one cannot disturb memory in use.
        let got = unsafe { libc::mmap(at as *mut libc::c_void, len, prot, flags, -1, 0) };
        assert_eq!(got as u64, at, "the area is free");
    };
    let rw = libc::PROT_READ | libc::PROT_WRITE;
    map(CODE, CODE_LEN, rw | libc::PROT_EXEC);
    map(DATA, DATA_LEN, rw);
    map(CTX, 4096, rw);
    let stack = Box::leak(vec![0_u8; 1 << 16].into_boxed_slice());
    let stack = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
    // SAFETY: the alternate stack is leaked, hence valid for ever; `on_signal` has the SA_SIGINFO signature and is
    // async-signal-safe; a zeroed sigaction is a valid one.
    unsafe {
        assert_eq!(libc::sigaltstack(&stack, std::ptr::null_mut()), 0);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        for signal in [libc::SIGFPE, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGTRAP] {
            assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
        }
    }
    Some(raw)
}

/// The code segment with `code` at [`START`] and INT3 around it.
pub fn text(code: &[u8]) -> Vec<u8> {
    let mut text = vec![0xcc; CODE_LEN];
    text[START..START + code.len()].copy_from_slice(code);
    text
}

/// Runs the instruction in `text` on the state in `ctx` and `data`.
pub fn native(text: &[u8], ctx: &mut Context, data: &mut [u8]) {
    // SAFETY: the areas are mapped by `prepare` with these sizes and used by this thread only. The segments that the code
    // runs with confine it to them; it either traps on an INT3 or faults, which `on_signal` turns into a jump to the
    // label below, with this stack. FS and GS are left alone. Every register is saved and restored or declared as
    // clobbered; DS and ES mean nothing in 64-bit mode.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr(), CODE as *mut u8, CODE_LEN);
        std::ptr::copy_nonoverlapping(data.as_ptr(), DATA as *mut u8, DATA_LEN);
        *(CTX as *mut Context) = *ctx;
        asm!(
            "push rbx", "push rbp",
            "mov [{c}+{saved_rsp}], rsp",
            "mov eax, ss", "mov [{c}+{saved_ss}], rax",
            "lea rax, [rip+2f]", "mov [{c}+{exit}], rax",
            "mov ds, word ptr [{c}+{ds}]", "mov es, word ptr [{c}+{es}]",
            "push qword ptr [{c}+{flags}]", "popfq",
            "mov ss, word ptr [{c}+{ss}]", "mov rsp, [{c}+0x20]",
            "mov rax, [{c}+0x00]", "mov rcx, [{c}+0x08]", "mov rdx, [{c}+0x10]", "mov rbx, [{c}+0x18]",
            "mov rbp, [{c}+0x28]", "mov rsi, [{c}+0x30]", "mov rdi, [{c}+0x38]",
            // JMP FAR [target]
            ".byte 0xff, 0x2c, 0x25", ".long {c}+{target}",
            "2:",
            "mov [{c}+{ds}], ds", "mov [{c}+{es}], es",
            "mov eax, ss", "mov ds, eax", "mov es, eax",
            "cld",
            "pop rbp", "pop rbx",
            c = const CTX,
            saved_rsp = const offset_of!(Context, saved_rsp),
            saved_ss = const offset_of!(Context, saved_ss),
            exit = const offset_of!(Context, exit),
            ds = const offset_of!(Context, ds),
            es = const offset_of!(Context, es),
            ss = const offset_of!(Context, ss),
            flags = const offset_of!(Context, flags),
            target = const offset_of!(Context, target),
            out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _, out("r8") _, out("r9") _,
            out("r10") _, out("r11") _, out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        );
        *ctx = *(CTX as *const Context);
        std::ptr::copy_nonoverlapping(DATA as *const u8, data.as_mut_ptr(), DATA_LEN);
    }
}
