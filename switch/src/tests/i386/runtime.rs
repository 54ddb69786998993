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

/// Ends the process; the line goes to standard error.
pub fn fail(line: u32) -> ! {
    let (mut text, mut n, mut rest) = ([0u8; 12], 11, line);
    text[n] = b'\n';
    while rest != 0 {
        n -= 1;
        text[n] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    syscall(4, [2, text[n..].as_ptr() as u32, (text.len() - n) as u32, 0]);
    exit(1)
}

pub fn exit(status: u32) -> ! {
    loop {
        syscall(1, [status, 0, 0, 0]);
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    fail(info.location().map_or(0, Location::line))
}

#[track_caller]
pub fn check(what: bool) {
    if !what {
        fail(Location::caller().line());
    }
}
