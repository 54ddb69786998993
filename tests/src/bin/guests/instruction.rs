//! One instruction, or what a processor may take for one.

use tests::random::Random;

/// With a memory operand in ModRM: opcodes that stock's emulator has too, and the flags that they leave are defined. What else
/// may be at a device is the program `emulated`'s.
const MEMORY: [&[u8]; 34] = [
    &[0x88],
    &[0x89],
    &[0x8a],
    &[0x8b],
    &[0x00],
    &[0x01],
    &[0x03],
    &[0x29],
    &[0x21],
    &[0x31],
    &[0x39],
    &[0x3b],
    &[0x84],
    &[0x85],
    &[0x86],
    &[0x87],
    &[0x0f, 0xb6],
    &[0x0f, 0xb7],
    &[0x0f, 0xbe],
    &[0x0f, 0xa3],
    &[0x0f, 0xab],
    &[0x0f, 0xb0],
    &[0x0f, 0xb1],
    &[0x0f, 0xc1],
    &[0x0f, 0xc0],
    &[0x0f, 0x45],
    &[0x8f],
    &[0xfe],
    &[0x0f, 0x94],
    &[0x0f, 0x6f],
    &[0x0f, 0x7f],
    &[0x0f, 0x28],
    &[0x0f, 0x29],
    &[0x0f, 0x0d],
];

/// That the processor or the hypervisor has to look at, whole.
const SYSTEM: [&[u8]; 57] = [
    &[0x0f, 0x20, 0xc0], // mov rax, cr0
    &[0x0f, 0x22, 0xc0], // mov cr0, rax
    &[0x0f, 0x20, 0xd0],
    &[0x0f, 0x22, 0xd0],
    &[0x0f, 0x20, 0xd8],
    &[0x0f, 0x22, 0xe0],
    &[0x0f, 0x22, 0xc8],       // mov cr1, rax
    &[0x44, 0x0f, 0x20, 0xc0], // mov rax, cr8
    &[0x44, 0x0f, 0x22, 0xc0],
    &[0x0f, 0x21, 0xc0], // mov rax, dr0
    &[0x0f, 0x23, 0xc0],
    &[0x0f, 0x21, 0xf0],
    &[0x0f, 0x23, 0xf0],
    &[0x0f, 0x23, 0xf8],
    &[0x0f, 0x21, 0xe8],
    &[0x0f, 0x06],       // clts
    &[0x0f, 0x01, 0xf0], // lmsw ax
    &[0x0f, 0x01, 0xe0],
    &[0x0f, 0x01, 0x3e], // invlpg
    &[0x0f, 0x00, 0xd8], // ltr ax
    &[0x0f, 0x00, 0xd0],
    &[0x0f, 0x02, 0xc3], // lar
    &[0x0f, 0x32],       // rdmsr
    &[0x0f, 0x30],
    &[0x0f, 0x30],
    &[0x0f, 0xa2], // cpuid
    &[0xe4, 0x70], // in al, 0x70
    &[0xe6, 0x70],
    &[0xec],
    &[0xed],
    &[0xee],
    &[0xef],
    &[0x6c], // insb
    &[0x6d],
    &[0x6e],
    &[0xf3, 0x6f],
    &[0xa4],
    &[0xf3, 0xa4],
    &[0xf3, 0xab],
    &[0xf2, 0xae],
    &[0xcc],
    &[0xcd, 0x21],
    &[0xce],
    &[0xf1], // icebp
    &[0xcf],
    &[0x48, 0xcf],
    &[0x9c],
    &[0x9d],
    &[0xfa],
    &[0xfb],
    &[0x0f, 0x05], // syscall
    &[0x0f, 0x0b],
    &[0x0f, 0x09], // wbinvd
    &[0x0f, 0x08],
    &[0xf3, 0x90],
    &[0x0f, 0x01, 0xd0], // xgetbv
    &[0x8e, 0xd0],       // mov ss, ax
];

/// What follows the prefixes.
fn behind_prefixes(bytes: &[u8]) -> &[u8] {
    let behind = bytes
        .iter()
        .position(|b| !matches!(b, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3));
    &bytes[behind.unwrap_or(bytes.len())..]
}

/// Does it read a port into memory?
pub fn is_ins(bytes: &[u8]) -> bool {
    matches!(behind_prefixes(bytes), [0x6c | 0x6d, ..])
}

/// At which no two processors are the same, or the hypervisors differ as it is written down (`policy`, `state`): time, nested
/// virtualisation, SYSENTER, monitors, performance counters, what the hypervisor patches, random numbers.
fn is_left_out(bytes: &[u8]) -> bool {
    match behind_prefixes(bytes) {
        [0x0f, 0x31 | 0x33 | 0x34 | 0x35 | 0xaa | 0x07 | 0xc7 | 0xae, ..] => true,
        // Tables from a device do not come to an end on stock.
        [0x0f, 0x01, modrm, ..] => {
            *modrm >> 6 != 3 && modrm >> 3 & 7 < 4 || *modrm >= 0xc1 && *modrm < 0xe0 && *modrm != 0xd0 || *modrm > 0xf7
        }
        // Stock shows CR4.MCE, which is the host's.
        [0x0f, 0x20, modrm, ..] => modrm >> 3 & 7 == 4,
        // How many elements REP INS asks for at once.
        [0x6c | 0x6d, ..] => bytes.iter().any(|b| matches!(b, 0xf2 | 0xf3)),
        // FPU: its pointers are the processor's own.
        [0xd8..=0xdf | 0x9b, ..] => true,
        [] => true,
        _ => false,
    }
}

/// Its bytes, at most 15.
pub fn any(random: &mut Random) -> Vec<u8> {
    loop {
        let mut bytes = Vec::new();
        if random.below(4) == 0 {
            bytes.push(random.of(&[0x66, 0x67, 0xf0, 0xf3, 0xf2, 0x64, 0x2e]));
        }
        match random.below(8) {
            0..3 => {
                if random.below(3) == 0 {
                    bytes.push(0x48 | random.below(8) as u8 & 0xd);
                }
                bytes.extend(random.of(&MEMORY));
                modrm(random, &mut bytes);
            }
            3..7 => bytes.extend(random.of(&SYSTEM)),
            _ => {
                bytes.extend((0..2 + random.below(6)).map(|_| random.below(256) as u8));
            }
        }
        bytes.truncate(15);
        if !is_left_out(&bytes) {
            return bytes;
        }
    }
}

/// A memory operand nearly always: RSI, RDI, RBX with a displacement, or an address by itself.
fn modrm(random: &mut Random, bytes: &mut Vec<u8>) {
    let reg = (random.below(8) as u8) << 3;
    match random.below(6) {
        0 => bytes.push(reg | 6),
        1 => bytes.push(reg | 7),
        2 => bytes.extend([reg | 0x43, random.below(256) as u8]),
        3 => bytes.extend([reg | 4, 0x33]),
        4 => bytes.push(reg | 0xc0 | random.below(8) as u8),
        _ => bytes.push(reg | 6),
    }
}
