//! What a program without a library needs: system calls, an end with a line number, and what the compiler calls.

use core::{
    arch::global_asm,
    panic::{Location, PanicInfo},
};

global_asm!(
    ".text",
    // What the compiler calls.
    ".globl memcpy, memmove, memset, memcmp, bcmp",
    "memcpy: memmove: push esi",
    "push edi",
    "mov edi, [esp + 12]",
    "mov esi, [esp + 16]",
    "mov ecx, [esp + 20]",
    "mov eax, edi",
    "cmp edi, esi",
    "jbe 2f",
    "std",
    "lea edi, [edi + ecx - 1]",
    "lea esi, [esi + ecx - 1]",
    "2: rep movsb",
    "cld",
    "pop edi",
    "pop esi",
    "ret",
    "memset: push edi",
    "mov edi, [esp + 8]",
    "mov eax, [esp + 12]",
    "mov ecx, [esp + 16]",
    "rep stosb",
    "mov eax, [esp + 8]",
    "pop edi",
    "ret",
    "memcmp: bcmp: push esi",
    "push edi",
    "mov edi, [esp + 12]",
    "mov esi, [esp + 16]",
    "mov ecx, [esp + 20]",
    "xor eax, eax",
    "repe cmpsb",
    "setne al",
    "pop edi",
    "pop esi",
    "ret",
);

// System call `n`; EBX and ESI are the compiler's own registers, so this is not inline assembly.
global_asm!(
    "syscall4: push ebx",
    "push esi",
    "mov eax, [esp + 12]",
    "mov ebx, [esp + 16]",
    "mov ecx, [esp + 20]",
    "mov edx, [esp + 24]",
    "mov esi, [esp + 28]",
    "int 0x80",
    "pop esi",
    "pop ebx",
    "ret",
);

// SAFETY: defined by the assembly above.
unsafe extern "C" {
    fn syscall4(n: u32, a: u32, b: u32, c: u32, d: u32) -> u32;
}

pub fn syscall(n: u32, [a, b, c, d]: [u32; 4]) -> u32 {
    // SAFETY: the callers' system calls touch what they are given only.
    unsafe { syscall4(n, a, b, c, d) }
}

/// Ends the process; where this is called goes to standard error.
#[track_caller]
pub fn fail() -> ! {
    failed(Some(Location::caller()))
}

fn failed(at: Option<&Location<'_>>) -> ! {
    let (file, line) = at.map_or(("", 0), |at| (at.file(), at.line()));
    syscall(4, [2, file.as_ptr() as u32, file.len() as u32, 0]);
    let (mut text, mut n, mut rest) = ([0u8; 12], 12, line);
    while rest != 0 {
        n -= 1;
        text[n] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    n -= 1;
    text[n] = b':';
    syscall(4, [2, text[n..].as_ptr() as u32, (text.len() - n) as u32, 0]);
    exit(1)
}

pub fn exit(status: u32) -> ! {
    loop {
        syscall(1, [status, 0, 0, 0]);
    }
}

/// The status that a child process ends with in which `f` runs; 0 if it comes back.
pub fn ends(f: impl FnOnce()) -> u32 {
    let (child, mut status) = (syscall(2, [0; 4]), u32::MAX);
    if child == 0 {
        f();
        exit(0);
    }
    check(syscall(7, [child, (&raw mut status) as u32, 0, 0]) == child && status & 0xff == 0);
    status >> 8
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    failed(info.location())
}

#[track_caller]
pub fn check(what: bool) {
    if !what {
        fail();
    }
}
