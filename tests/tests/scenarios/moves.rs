//! Plain loads and stores of devices, which need less than the whole emulator: every size, and what is not plain.

use abi::uapi::run::exit::MMIO_DATA;
use sim::arch::exit;
use sim::host::Cpu;
use tests::scenario::{CODE, Left, MMIO, Machine};

const OLD: u64 = 0xffee_ddcc_bbaa_9988;
const DEVICE: u64 = 0x8877_6655_4433_2281;
/// EXITINFO1 of a read whose own address was not mapped.
const FINAL_ACCESS: u64 = 1 << 32 | 4;
const RF: u64 = 1 << 16;
const TF: u64 = 1 << 8;

/// A VM that is about to execute `code` with RBX = `rbx` and RAX = [`OLD`].
fn machine(code: &[u8], rbx: u64, flags: u64) -> Machine {
    let m = Machine::new();
    m.long(0, code);
    m.with_regs(0, |r| (r.rbx, r.rax, r.rflags) = (rbx, OLD, 2 | flags));
    m
}

/// Executes a load of `len` bytes; RAX then, if RIP and flags are what they have to be.
fn load(code: &[u8], len: usize, flags: u64) -> u64 {
    let m = machine(code, MMIO + 8 - len as u64, flags);
    let at = MMIO + 8 - len as u64;
    m.npf(0, at, false);
    assert_eq!(m.run(0), Ok(Left::Mmio { gpa: at, write: false, data: vec![0; len] }), "{code:02x?}");
    assert_eq!((m.regs(0).rip, m.regs(0).rax), (CODE, OLD), "not done yet");
    m.page(0).write(MMIO_DATA, &DEVICE.to_le_bytes());
    m.does(0, |_| ());
    m.run_out(0);
    let (r, traps) = (m.regs(0), m.injected(0).iter().filter(|e| e.vector() == 1).count());
    assert_eq!((r.rip, r.rflags & RF), (CODE + code.len() as u64, 0), "{code:02x?}");
    assert_eq!(traps, usize::from(flags & TF != 0), "{code:02x?}");
    m.end();
    r.rax
}

/// Executes a store; what user space gets.
fn store(code: &[u8], len: u64, flags: u64) -> Vec<u8> {
    let at = MMIO + 0x18 - len;
    let m = machine(code, at, flags);
    m.npf(0, at, true);
    let left = m.run(0);
    // A single step traps first; the write goes out all the same.
    let Ok(Left::Mmio { gpa, write: true, data }) = left else { panic!("{code:02x?}: {left:?}") };
    assert_eq!((gpa, m.regs(0).rip, m.regs(0).rflags & RF), (at, CODE + code.len() as u64, 0), "{code:02x?}");
    m.does(0, |_| ());
    m.run_out(0);
    m.end();
    data
}

#[test]
fn a_load_of_every_size_with_and_without_the_whole_emulator() {
    let loads: [(&[u8], usize, u64); 9] = [
        (&[0x8a, 0x03], 1, OLD & !0xff | 0x81),                // mov al, [rbx]
        (&[0x66, 0x8b, 0x03], 2, OLD & !0xffff | 0x2281),      // mov ax, [rbx]
        (&[0x8b, 0x03], 4, 0x4433_2281),                       // mov eax, [rbx]
        (&[0x48, 0x8b, 0x03], 8, DEVICE),                      // mov rax, [rbx]
        (&[0x0f, 0xb6, 0x03], 1, 0x81),                        // movzx eax, byte [rbx]
        (&[0x66, 0x0f, 0xb6, 0x03], 1, OLD & !0xffff | 0x81),  // movzx ax, byte [rbx]
        (&[0x48, 0x0f, 0xb7, 0x03], 2, 0x2281),                // movzx rax, word [rbx]
        (&[0x8a, 0x23], 1, OLD & !0xff00 | 0x8100),            // mov ah, [rbx]: not plain
        (&[0x48, 0x0f, 0xbe, 0x03], 1, 0xffff_ffff_ffff_ff81), // movsx rax, byte [rbx]: not plain
    ];
    for (code, len, rax) in loads {
        assert_eq!(load(code, len, RF), rax, "{code:02x?}");
        // Where the guest steps through its code it is not plain either.
        assert_eq!(load(code, len, TF), rax, "{code:02x?}");
    }
}

#[test]
fn a_store_of_every_size() {
    let stores: [(&[u8], &[u8]); 8] = [
        (&[0x88, 0x03], &[0x88]),                                                       // mov [rbx], al
        (&[0x66, 0x89, 0x03], &[0x88, 0x99]),                                           // mov [rbx], ax
        (&[0x89, 0x03], &[0x88, 0x99, 0xaa, 0xbb]),                                     // mov [rbx], eax
        (&[0x48, 0x89, 0x03], &[0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]),       // mov [rbx], rax
        (&[0x48, 0x0f, 0xc3, 0x03], &[0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]), // movnti [rbx], rax
        (&[0xc6, 0x03, 0x7f], &[0x7f]),                                                 // mov byte [rbx], 7f
        (&[0x48, 0xc7, 0x03, 0xfe, 0xff, 0xff, 0xff], &[0xfe, 255, 255, 255, 255, 255, 255, 255]), // mov qword [rbx], -2
        (&[0x88, 0x23], &[0x99]), // mov [rbx], ah: not plain
    ];
    for (code, data) in stores {
        assert_eq!(store(code, data.len() as u64, RF), data, "{code:02x?}");
    }
}

#[test]
fn the_address_counts_with_all_its_parts() {
    // mov eax, fs:[rbx + rcx * 4 + 0x20]
    let m = machine(&[0x64, 0x8b, 0x44, 0x8b, 0x20], 0x100, 0);
    m.with_regs(0, |r| r.rcx = 3);
    m.inside(0, |c| {
        use sim::arch::CleanBits;
        c.core.cpu.save_mut(CleanBits::SEG).fs.base = MMIO + 0x1000;
    });
    let at = MMIO + 0x1000 + 0x100 + 12 + 0x20;
    m.npf(0, at, false);
    assert_eq!(m.run(0), Ok(Left::Mmio { gpa: at, write: false, data: vec![0; 4] }));
    // Its base is another one when the answer comes: another access.
    m.inside(0, |c| {
        use sim::arch::CleanBits;
        c.core.cpu.save_mut(CleanBits::SEG).fs.base = MMIO;
    });
    m.page(0).write(MMIO_DATA, &[1; 8]);
    assert_eq!(m.run(0), Ok(Left::Mmio { gpa: at - 0x1000, write: false, data: vec![0; 4] }));
    m.page(0).write(MMIO_DATA, &[2; 8]);
    m.run_out(0);
    assert_eq!((m.regs(0).rax, m.regs(0).rip), (0x0202_0202, CODE + 5));
}

/// An answer is for the instruction that asked, whatever user space has put into the registers meanwhile.
#[test]
fn an_answer_goes_to_no_other_instruction() {
    let m = machine(&[0x8b, 0x03, 0x90], MMIO, 0);
    m.npf(0, MMIO, false);
    assert_eq!(m.run(0), Ok(Left::Mmio { gpa: MMIO, write: false, data: vec![0; 4] }));
    m.with_regs(0, |r| r.rbx = MMIO + 4);
    m.page(0).write(MMIO_DATA, &[1; 8]);
    m.run_out(0);
    assert_eq!((m.regs(0).rax, m.regs(0).rbx, m.regs(0).rip), (0x0101_0101, MMIO + 4, CODE + 2));
}

/// The processor gives the bytes: what is decoded once is known, by its bytes and its mode, wherever it is.
#[test]
fn the_bytes_that_the_processor_gives_are_what_is_done() {
    let m = machine(&[], MMIO, 0);
    let does = |code: &[u8], rip: u64| {
        let mut bytes = [0x90; 15];
        bytes[..code.len()].copy_from_slice(code);
        m.with_regs(0, |r| r.rip = rip);
        m.sim.step(0, move |c| {
            (c.vmcb().insn_len, c.vmcb().insn_bytes) = (15, bytes);
            (exit::code::NPF, FINAL_ACCESS, MMIO)
        });
        let Ok(Left::Mmio { data, .. }) = m.run(0) else { panic!("{code:02x?}") };
        m.page(0).write(MMIO_DATA, &DEVICE.to_le_bytes());
        m.does(0, |_| ());
        m.run_out(0);
        assert_eq!(m.regs(0).rip, rip + code.len() as u64);
        data.len()
    };
    // Some of these share their place.
    let loads: [(&[u8], usize); 6] = [
        (&[0x8b, 0x03], 4),
        (&[0x48, 0x8b, 0x03], 8),
        (&[0x66, 0x8b, 0x03], 2),
        (&[0x8a, 0x03], 1),
        (&[0x0f, 0xb7, 0x03], 2),
        (&[0x3e, 0x8b, 0x03], 4),
    ];
    for rip in [CODE, CODE + 0x100, CODE] {
        for (code, len) in loads {
            assert_eq!([(); 2].map(|()| does(code, rip)), [len; 2], "{code:02x?}");
        }
    }
    m.end();
}
