//! Runs one instruction on the processor: mapped code and data, an assembly frame around it, signals for faults.

use std::arch::asm;

/// Where the code page, the data pages and the context are mapped: below 2 GiB, so that 32-bit addresses work.
pub const CODE: u64 = 0x1000_0000;
pub const DATA: u64 = 0x2000_0000;
pub const DATA_LEN: usize = 0x2000;
pub const MIDDLE: u64 = DATA + DATA_LEN as u64 / 2;
const CTX: u64 = 0x3000_0000;

/// State that goes into and comes out of a native run. At `CTX`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Context {
    pub gpr: [u64; 16],
    pub flags: u64,
    pub saved_rsp: u64,
    pub exit: u64,
    pub code: u64,
    pub signal: u64,
    pub unused: [u64; 3],
    pub ymm: [[u8; 32]; 16],
    pub mmx: [u64; 8],
}

extern "C" fn on_signal(signal: libc::c_int, _: *mut libc::siginfo_t, ucontext: *mut libc::c_void) {
    let ucontext = ucontext.cast::<libc::ucontext_t>();
    // SAFETY: the kernel passes a valid ucontext to an SA_SIGINFO handler; the context page is mapped for the life of
    // the process before the handler is installed, and only the thread that runs `native` uses it.
    unsafe {
        let rip = &mut (*ucontext).uc_mcontext.gregs[libc::REG_RIP as usize];
        let ctx = CTX as *mut Context;
        if (*rip as u64) < CODE || *rip as u64 >= CODE + 4096 {
            libc::abort();
        }
        (*ctx).signal = signal as u64;
        *rip = (*ctx).exit as i64;
    }
}

/// Maps the three areas and takes the signals that faults become.
pub fn prepare() {
    let map = |at: u64, len: usize, prot: i32| {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: a fixed mapping that does not replace another one cannot disturb memory in use.
        let got = unsafe { libc::mmap(at as *mut libc::c_void, len, prot, flags, -1, 0) };
        assert_eq!(got as u64, at, "the area is free");
    };
    let rw = libc::PROT_READ | libc::PROT_WRITE;
    map(CODE, 4096, rw | libc::PROT_EXEC);
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
        for signal in [libc::SIGFPE, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL] {
            assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
        }
    }
}

/// Runs `code` (without its way out) on the state in `ctx` and `data`.
pub fn native(code: &[u8], ctx: &mut Context, data: &mut [u8]) {
    // JMP [exit], absolute.
    let exit = CTX + std::mem::offset_of!(Context, exit) as u64;
    let mut whole = code.to_vec();
    whole.extend([0xff, 0x24, 0x25]);
    whole.extend((exit as u32).to_le_bytes());
    ctx.signal = 0;
    ctx.code = CODE;
    // SAFETY: the three areas are mapped by `prepare` with these sizes and used by this thread only. The code is one
    // instruction that `safe` has let through: it touches only registers and the data area, and either reaches the
    // jump behind it or faults into `on_signal`; both go to the label below. Every register is saved and restored or
    // declared as clobbered.
    unsafe {
        std::ptr::copy_nonoverlapping(whole.as_ptr(), CODE as *mut u8, whole.len());
        std::ptr::copy_nonoverlapping(data.as_ptr(), DATA as *mut u8, data.len());
        *(CTX as *mut Context) = *ctx;
        asm!(
            "push rbx", "push rbp",
            "mov [{ctx}+0x88], rsp",
            "lea rax, [rip+2f]",
            "mov [{ctx}+0x90], rax",
            "vmovdqu ymm0, [{ctx}+0xc0]", "vmovdqu ymm1, [{ctx}+0xe0]",
            "vmovdqu ymm2, [{ctx}+0x100]", "vmovdqu ymm3, [{ctx}+0x120]",
            "vmovdqu ymm4, [{ctx}+0x140]", "vmovdqu ymm5, [{ctx}+0x160]",
            "vmovdqu ymm6, [{ctx}+0x180]", "vmovdqu ymm7, [{ctx}+0x1a0]",
            "vmovdqu ymm8, [{ctx}+0x1c0]", "vmovdqu ymm9, [{ctx}+0x1e0]",
            "vmovdqu ymm10, [{ctx}+0x200]", "vmovdqu ymm11, [{ctx}+0x220]",
            "vmovdqu ymm12, [{ctx}+0x240]", "vmovdqu ymm13, [{ctx}+0x260]",
            "vmovdqu ymm14, [{ctx}+0x280]", "vmovdqu ymm15, [{ctx}+0x2a0]",
            "movq mm0, [{ctx}+0x2c0]", "movq mm1, [{ctx}+0x2c8]", "movq mm2, [{ctx}+0x2d0]", "movq mm3, [{ctx}+0x2d8]",
            "movq mm4, [{ctx}+0x2e0]", "movq mm5, [{ctx}+0x2e8]", "movq mm6, [{ctx}+0x2f0]", "movq mm7, [{ctx}+0x2f8]",
            "push qword ptr [{ctx}+0x80]", "popfq",
            "mov rax, [{ctx}+0x00]", "mov rcx, [{ctx}+0x08]", "mov rdx, [{ctx}+0x10]", "mov rbx, [{ctx}+0x18]",
            "mov rsp, [{ctx}+0x20]", "mov rbp, [{ctx}+0x28]", "mov rsi, [{ctx}+0x30]", "mov rdi, [{ctx}+0x38]",
            "mov r8, [{ctx}+0x40]", "mov r9, [{ctx}+0x48]", "mov r10, [{ctx}+0x50]", "mov r11, [{ctx}+0x58]",
            "mov r12, [{ctx}+0x60]", "mov r13, [{ctx}+0x68]", "mov r14, [{ctx}+0x70]", "mov r15, [{ctx}+0x78]",
            "jmp qword ptr [{ctx}+0x98]",
            "2:",
            "mov [{ctx}+0x00], rax", "mov [{ctx}+0x08], rcx", "mov [{ctx}+0x10], rdx", "mov [{ctx}+0x18], rbx",
            "mov [{ctx}+0x20], rsp", "mov [{ctx}+0x28], rbp", "mov [{ctx}+0x30], rsi", "mov [{ctx}+0x38], rdi",
            "mov [{ctx}+0x40], r8", "mov [{ctx}+0x48], r9", "mov [{ctx}+0x50], r10", "mov [{ctx}+0x58], r11",
            "mov [{ctx}+0x60], r12", "mov [{ctx}+0x68], r13", "mov [{ctx}+0x70], r14", "mov [{ctx}+0x78], r15",
            "mov rsp, [{ctx}+0x88]",
            "pushfq", "pop qword ptr [{ctx}+0x80]",
            "cld",
            "vmovdqu [{ctx}+0xc0], ymm0", "vmovdqu [{ctx}+0xe0], ymm1",
            "vmovdqu [{ctx}+0x100], ymm2", "vmovdqu [{ctx}+0x120], ymm3",
            "vmovdqu [{ctx}+0x140], ymm4", "vmovdqu [{ctx}+0x160], ymm5",
            "vmovdqu [{ctx}+0x180], ymm6", "vmovdqu [{ctx}+0x1a0], ymm7",
            "vmovdqu [{ctx}+0x1c0], ymm8", "vmovdqu [{ctx}+0x1e0], ymm9",
            "vmovdqu [{ctx}+0x200], ymm10", "vmovdqu [{ctx}+0x220], ymm11",
            "vmovdqu [{ctx}+0x240], ymm12", "vmovdqu [{ctx}+0x260], ymm13",
            "vmovdqu [{ctx}+0x280], ymm14", "vmovdqu [{ctx}+0x2a0], ymm15",
            "movq [{ctx}+0x2c0], mm0", "movq [{ctx}+0x2c8], mm1", "movq [{ctx}+0x2d0], mm2", "movq [{ctx}+0x2d8], mm3",
            "movq [{ctx}+0x2e0], mm4", "movq [{ctx}+0x2e8], mm5", "movq [{ctx}+0x2f0], mm6", "movq [{ctx}+0x2f8], mm7",
            "emms",
            "vzeroupper",
            "pop rbp", "pop rbx",
            ctx = const CTX,
            out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _, out("r8") _, out("r9") _,
            out("r10") _, out("r11") _, out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _, out("xmm6") _,
            out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _, out("xmm12") _,
            out("xmm13") _, out("xmm14") _, out("xmm15") _,
            out("mm0") _, out("mm1") _, out("mm2") _, out("mm3") _, out("mm4") _, out("mm5") _, out("mm6") _, out("mm7") _,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _, out("st(4)") _, out("st(5)") _, out("st(6)") _,
            out("st(7)") _,
        );
        *ctx = *(CTX as *const Context);
        std::ptr::copy_nonoverlapping(DATA as *const u8, data.as_mut_ptr(), data.len());
    }
}
