//! `old FILE` writes a disk for a PC of long ago: a boot sector and a program in real mode, which say on the first serial port what they see.
//!
//! The program reads and writes its disk by the BIOS, uses segments of 4 GB in real mode ("unreal" or big real mode) for
//! memory and for devices, sees the limits of those that are not, and then switches between tasks by hardware: by JMP, CALL, IRET,
//! a task gate in the IDT and one for an exception, with TSSs of 32 and of 16 bits. At its end it switches the power off.
//!
//! Long because: one program, from its boot sector to its tables.

use anyhow::{Context, Result, ensure};
use iced_x86::{IcedError, code_asm::*};

const SECTOR: usize = 512;
/// Where the BIOS loads the boot sector, and that the rest.
const BOOT: u32 = 0x7c00;
const REAL: u32 = 0x8000;
/// In real mode, of general-protection faults.
const HANDLER: u32 = 0x8f80;
const PROTECTED: u32 = 0x9000;
const GDT: u32 = 0xa000;
const IDT: u32 = 0xa100;
const POINTERS: u32 = 0xa3e0;
const TASKS: u32 = 0xa400;
const TEXT: u32 = 0xa800;
const END: u32 = 0xb000;
/// What INT 13h is told: a packet, and the sector behind it.
const PACKET: u32 = 0x4000;
const BUFFER: u32 = 0x4200;
/// How often the handler was called.
const FAULTS: u32 = 0x4100;
/// Numbers of the sectors that are read and written.
const READ: u32 = 40;
const WRITTEN: u32 = 41;

/// Selectors. Those of tasks are in the order of `TASKS`, 0x80 bytes each.
const CODE32: u16 = 0x08;
const DATA: u16 = 0x10;
const FIRST: u16 = 0x18;
const SECOND: u16 = 0x20;
const NARROW: u16 = 0x28;
const MENDER: u16 = 0x30;
const GATE: u32 = 0x30;

const SERIAL: u32 = 0x3f8;
/// PM1a_CNT of QEMU's boards, once their BIOS has placed it, and what switches the power off.
const POWER: (u32, u32) = (0x604, 0x2000);

const fn task(n: u32) -> u32 {
    TASKS + 0x80 * n
}

type Code = Result<(), IcedError>;

/// Strings, one after the other, and where each is.
#[derive(Default)]
struct Texts(Vec<u8>);

impl Texts {
    fn add(&mut self, text: &str) -> u32 {
        let at = TEXT + self.0.len() as u32;
        self.0.extend(text.bytes());
        self.0.push(0);
        at
    }
}

/// Subroutines that both programs have: AL goes to the serial port; text at ESI does; EAX does in hex.
struct Routines {
    text: CodeLabel,
    hex: CodeLabel,
}

impl Routines {
    fn new(a: &mut CodeAssembler) -> Self {
        Self { text: a.create_label(), hex: a.create_label() }
    }

    fn say(&self, a: &mut CodeAssembler, texts: &mut Texts, text: &str) -> Code {
        a.mov(esi, texts.add(text))?;
        a.call(self.text)
    }

    /// EAX behind the text, and the end of a line.
    fn say_eax(&self, a: &mut CodeAssembler, texts: &mut Texts, text: &str) -> Code {
        self.say(a, texts, text)?;
        a.call(self.hex)
    }

    fn place(&mut self, a: &mut CodeAssembler) -> Code {
        let (mut one, mut next, mut done) = (a.create_label(), a.create_label(), a.create_label());
        a.set_label(&mut one)?;
        let mut wait = a.create_label();
        a.push(eax)?;
        a.mov(edx, SERIAL + 5)?;
        a.set_label(&mut wait)?;
        a.in_(al, dx)?;
        a.test(al, 0x20)?;
        a.jz(wait)?;
        a.pop(eax)?;
        a.mov(edx, SERIAL)?;
        a.out(dx, al)?;
        a.ret()?;
        a.set_label(&mut self.text)?;
        a.push(eax)?;
        a.set_label(&mut next)?;
        a.mov(al, byte_ptr(esi))?;
        a.inc(esi)?;
        a.test(al, al)?;
        a.jz(done)?;
        a.call(one)?;
        a.jmp(next)?;
        a.set_label(&mut done)?;
        a.pop(eax)?;
        a.ret()?;
        let (mut digit, mut decimal) = (a.create_label(), a.create_label());
        a.set_label(&mut self.hex)?;
        a.mov(ecx, 8)?;
        a.set_label(&mut digit)?;
        a.rol(eax, 4)?;
        a.push(eax)?;
        a.and(al, 15)?;
        a.add(al, i32::from(b'0'))?;
        a.cmp(al, i32::from(b'9'))?;
        a.jbe(decimal)?;
        a.add(al, 39)?;
        a.set_label(&mut decimal)?;
        a.call(one)?;
        a.pop(eax)?;
        a.dec(ecx)?;
        a.jnz(digit)?;
        a.mov(al, i32::from(b'\n'))?;
        a.jmp(one)
    }
}

fn assembled(bits: u32, at: u32, room: u32, fill: impl FnOnce(&mut CodeAssembler) -> Code) -> Result<Vec<u8>> {
    let mut a = CodeAssembler::new(bits)?;
    fill(&mut a)?;
    let mut code = a.assemble(at.into())?;
    ensure!(code.len() <= room as usize, "{} bytes at {at:#x} are too many", code.len());
    code.resize(room as usize, 0);
    Ok(code)
}

/// One sector by INT 13h, `function` 0x42 to read and 0x43 to write. The BIOS was given the disk's number in DL.
fn transfer(a: &mut CodeAssembler, function: u32, sectors: u32, to: u32, from: u32) -> Code {
    for (n, word) in [0x10, sectors, to & 0xf, to >> 4, from, 0, 0, 0].into_iter().enumerate() {
        a.mov(word_ptr(PACKET + 2 * n as u32), word)?;
    }
    a.mov(si, PACKET)?;
    a.mov(dl, byte_ptr(PACKET - 1))?;
    a.mov(ax, function << 8)?;
    a.int(0x13)
}

fn boot_sector() -> Result<Vec<u8>> {
    let mut sector = assembled(16, BOOT, 510, |a| {
        a.cli()?;
        a.xor(eax, eax)?;
        a.mov(ds, ax)?;
        a.mov(es, ax)?;
        a.mov(ss, ax)?;
        a.mov(esp, BOOT)?;
        a.sti()?;
        a.mov(byte_ptr(PACKET - 1), dl)?;
        transfer(a, 0x42, (END - REAL) / SECTOR as u32, REAL, 1)?;
        a.db(&[0xea, REAL as u8, (REAL >> 8) as u8, 0, 0])
    })?;
    sector.extend([0x55, 0xaa]);
    Ok(sector)
}

fn real(texts: &mut Texts) -> Result<Vec<u8>> {
    assembled(16, REAL, HANDLER - REAL, |a| {
        let mut routines = Routines::new(a);
        routines.say(a, texts, "old: in real mode\n")?;
        transfer(a, 0x42, 1, BUFFER, READ)?;
        a.mov(esi, BUFFER)?;
        a.call(routines.text)?;
        // Its words, the other way round.
        let mut word = a.create_label();
        a.xor(edi, edi)?;
        a.set_label(&mut word)?;
        a.ror(word_ptr(edi + BUFFER), 8)?;
        a.add(edi, 2)?;
        a.cmp(edi, SECTOR as i32)?;
        a.jb(word)?;
        transfer(a, 0x43, 1, BUFFER, WRITTEN)?;
        a.movzx(eax, ah)?;
        routines.say_eax(a, texts, "old: wrote its disk: ")?;
        a.mov(ax, 0xe801)?;
        a.int(0x15)?;
        a.movzx(eax, bx)?;
        routines.say_eax(a, texts, "old: 64 KB pieces above 16 MB: ")?;

        limits(a, texts, &routines)?;
        // FS with 4 GB: loaded in protected mode, kept in real mode.
        a.cli()?;
        a.lgdt(word_ptr(POINTERS))?;
        a.mov(eax, cr0)?;
        a.or(al, 1)?;
        a.mov(cr0, eax)?;
        a.mov(bx, i32::from(DATA))?;
        a.mov(fs, bx)?;
        a.and(al, 0xfe)?;
        a.mov(cr0, eax)?;
        a.xor(bx, bx)?;
        a.sti()?;
        unreal(a, texts, &routines)?;
        limits(a, texts, &routines)?;

        a.cli()?;
        a.lidt(word_ptr(POINTERS + 8))?;
        a.mov(eax, cr0)?;
        a.or(al, 1)?;
        a.mov(cr0, eax)?;
        a.db(&[0x66, 0xea])?;
        a.db(&PROTECTED.to_le_bytes())?;
        a.db(&CODE32.to_le_bytes())?;
        routines.place(a)
    })
}

/// What is beyond 64 KB of a segment that was never anything else: a fault.
fn limits(a: &mut CodeAssembler, texts: &mut Texts, routines: &Routines) -> Code {
    a.mov(dword_ptr(13 * 4), HANDLER)?;
    a.mov(dword_ptr(FAULTS), 0)?;
    a.mov(edi, 0x1_0000)?;
    a.mov(eax, dword_ptr(edi))?;
    a.nop()?;
    a.mov(eax, dword_ptr(FAULTS))?;
    routines.say_eax(a, texts, "old: faults beyond 64 KB: ")
}

/// Counts a fault, and steps over what met it: MOV with two prefixes and a register's address, 4 bytes, and NOP.
fn handler() -> Result<Vec<u8>> {
    assembled(16, HANDLER, PROTECTED - HANDLER, |a| {
        a.inc(dword_ptr(FAULTS))?;
        a.push(bp)?;
        a.mov(bp, sp)?;
        a.add(word_ptr(bp + 2), 5)?;
        a.pop(bp)?;
        a.iret()
    })
}

fn unreal(a: &mut CodeAssembler, texts: &mut Texts, routines: &Routines) -> Code {
    let (mut fill, mut sum, mut tick) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(edi, 0x20_0000)?;
    a.set_label(&mut fill)?;
    a.mov(dword_ptr(edi).fs(), edi)?;
    a.add(edi, 4)?;
    a.cmp(edi, 0x28_0000)?;
    a.jb(fill)?;
    // Interrupts come and go meanwhile.
    a.mov(ecx, 3)?;
    a.set_label(&mut tick)?;
    a.hlt()?;
    a.dec(ecx)?;
    a.jnz(tick)?;
    a.xor(eax, eax)?;
    a.mov(edi, 0x20_0000)?;
    a.set_label(&mut sum)?;
    a.rol(eax, 1)?;
    a.add(eax, dword_ptr(edi).fs())?;
    a.add(edi, 4)?;
    a.cmp(edi, 0x28_0000)?;
    a.jb(sum)?;
    routines.say_eax(a, texts, "old: sum of memory above 1 MB: ")?;
    // Devices, which is an instruction for the hypervisor's emulator each.
    a.mov(edi, 0xfee0_0030_u32)?;
    a.mov(eax, dword_ptr(edi).fs())?;
    routines.say_eax(a, texts, "old: version of the local APIC: ")?;
    a.mov(edi, 0xfec0_0000_u32)?;
    a.mov(dword_ptr(edi).fs(), 1)?;
    a.mov(eax, dword_ptr(edi + 0x10).fs())?;
    routines.say_eax(a, texts, "old: version of the I/O APIC: ")?;
    a.mov(edi, 0xfee0_0080_u32)?;
    a.mov(dword_ptr(edi).fs(), 0x20)?;
    a.or(dword_ptr(edi).fs(), 0x15)?;
    a.mov(eax, dword_ptr(edi).fs())?;
    a.mov(dword_ptr(edi).fs(), 0)?;
    routines.say_eax(a, texts, "old: task priority: ")
}

/// A far jump (0xea) or call (0x9a) to a task.
fn to_task(a: &mut CodeAssembler, opcode: u8, selector: u16) -> Code {
    a.db(&[opcode, 0, 0, 0, 0, selector as u8, (selector >> 8) as u8])
}

/// The program in protected mode, and where its tasks begin.
fn protected(texts: &mut Texts) -> Result<(Vec<u8>, [u32; 2])> {
    let mut entries = [0; 2];
    let mut code = Vec::new();
    // Twice: the first time tells where the labels are, which the program does not hold itself.
    let mut a = CodeAssembler::new(32)?;
    let (mut second, mut mender) = (a.create_label(), a.create_label());
    let mut routines = Routines::new(&mut a);
    {
        let a = &mut a;
        a.mov(eax, i32::from(DATA))?;
        for register in [ds, es, ss, fs, gs] {
            a.mov(register, ax)?;
        }
        a.mov(esp, 0x7000)?;
        a.mov(eax, i32::from(FIRST))?;
        a.ltr(ax)?;
        routines.say(a, texts, "old: in protected mode\n")?;
        a.mov(ebp, 0x1234_5678)?;
        to_task(a, 0xea, SECOND)?;
        routines.say(a, texts, "old: back from a jump\n")?;
        to_task(a, 0x9a, SECOND)?;
        routines.say(a, texts, "old: back from a call\n")?;
        to_task(a, 0x9a, NARROW)?;
        routines.say(a, texts, "old: back from a task of 16 bits\n")?;
        a.int(GATE as i32)?;
        routines.say(a, texts, "old: back from a task gate\n")?;
        a.ud2()?;
        routines.say(a, texts, "old: back from an exception\n")?;
        // Without TS, which a switch sets: QEMU's emulation of SVM does not report task switches to the hypervisor but does them,
        // behind the back of one that has its own value in TS.
        a.mov(eax, cr0)?;
        a.and(al, 0xf7)?;
        routines.say_eax(a, texts, "old: CR0 but for TS: ")?;
        a.mov(eax, ebp)?;
        routines.say_eax(a, texts, "old: EBP ")?;
        // What the switches left in the descriptors and in the tasks.
        let mut dump = a.create_label();
        a.mov(edi, GDT)?;
        a.set_label(&mut dump)?;
        a.mov(eax, dword_ptr(edi))?;
        a.call(routines.hex)?;
        a.add(edi, 4)?;
        a.cmp(edi, GDT as i32 + 0x38)?;
        let mut tasks = a.create_label();
        a.jb(dump)?;
        a.mov(edi, TASKS)?;
        a.set_label(&mut tasks)?;
        a.mov(eax, dword_ptr(edi))?;
        a.call(routines.hex)?;
        a.add(edi, 4)?;
        a.cmp(edi, task(4) as i32)?;
        a.jb(tasks)?;
        routines.say(a, texts, "old: done\n")?;
        a.mov(edx, POWER.0)?;
        a.mov(eax, POWER.1)?;
        a.out(dx, ax)?;
        a.hlt()?;
        // The second task: entered by a jump, a call, a call of 16 bits' TSS and a gate.
        a.set_label(&mut second)?;
        a.mov(eax, ebx)?;
        routines.say_eax(a, texts, "old: in another task with EBX ")?;
        a.add(ebx, 1)?;
        a.pushfd()?;
        a.pop(eax)?;
        a.and(eax, 0x4000)?;
        a.mov(edi, eax)?;
        routines.say_eax(a, texts, "old: its NT ")?;
        a.test(edi, edi)?;
        let mut nested = a.create_label();
        a.jnz(nested)?;
        to_task(a, 0xea, FIRST)?;
        a.jmp(second)?;
        a.set_label(&mut nested)?;
        a.iretd()?;
        a.jmp(second)?;
        // Steps over UD2 in the task that met it.
        a.set_label(&mut mender)?;
        a.add(dword_ptr(task(0) + 0x20), 2)?;
        routines.say(a, texts, "old: an exception's task\n")?;
        a.iretd()?;
        a.jmp(mender)?;
        routines.place(a)?;
    }
    let result = a.assemble_options(PROTECTED.into(), iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    for (entry, label) in entries.iter_mut().zip([&second, &mender]) {
        *entry = u32::try_from(result.label_ip(label)?)?;
    }
    code.extend(&result.inner.code_buffer);
    ensure!(code.len() <= (GDT - PROTECTED) as usize, "the program is too long");
    code.resize((GDT - PROTECTED) as usize, 0);
    Ok((code, entries))
}

fn descriptor(base: u32, limit: u32, access: u8, flags: u8) -> [u8; 8] {
    let value = u64::from(limit & 0xffff)
        | u64::from(base & 0xff_ffff) << 16
        | u64::from(access) << 40
        | u64::from(limit >> 16 & 15) << 48
        | u64::from(flags) << 52
        | u64::from(base >> 24) << 56;
    value.to_le_bytes()
}

fn task_gate(selector: u16) -> [u8; 8] {
    let mut gate = [0, 0, 0, 0, 0, 0x85, 0, 0];
    gate[2..4].copy_from_slice(&selector.to_le_bytes());
    gate
}

/// Puts bytes where they are in memory.
fn put(memory: &mut [u8], at: u32, bytes: &[u8]) -> Result<()> {
    let at = (at - REAL) as usize;
    memory.get_mut(at..at + bytes.len()).context("too long")?.copy_from_slice(bytes);
    Ok(())
}

fn disk() -> Result<Vec<u8>> {
    let mut texts = Texts::default();
    let mut memory = vec![0; (END - REAL) as usize];
    put(&mut memory, REAL, &real(&mut texts)?)?;
    put(&mut memory, HANDLER, &handler()?)?;
    let (program, [second, mender]) = protected(&mut texts)?;
    put(&mut memory, PROTECTED, &program)?;
    let gdt = [
        [0; 8],
        descriptor(0, 0xf_ffff, 0x9b, 0xc),
        descriptor(0, 0xf_ffff, 0x93, 0xc),
        descriptor(task(0), 0x67, 0x89, 0),
        descriptor(task(1), 0x67, 0x89, 0),
        descriptor(task(2), 0x2b, 0x81, 0),
        descriptor(task(3), 0x67, 0x89, 0),
    ];
    put(&mut memory, GDT, gdt.as_flattened())?;
    put(&mut memory, IDT + 6 * 8, &task_gate(MENDER))?;
    put(&mut memory, IDT + GATE * 8, &task_gate(SECOND))?;
    for (n, (limit, base)) in [(0x37_u16, GDT), (GATE as u16 * 8 + 7, IDT)].into_iter().enumerate() {
        let at = POINTERS + 8 * n as u32;
        put(&mut memory, at, &limit.to_le_bytes())?;
        put(&mut memory, at + 2, &base.to_le_bytes())?;
    }
    for (n, entry) in [(1, second), (3, mender)] {
        let mut tss = [0_u32; 26];
        (tss[8], tss[9]) = (entry, 2);
        (tss[13], tss[14]) = (0x1000 * n, 0x7000 - 0x800 * n);
        for (register, selector) in [(18, DATA), (19, CODE32), (20, DATA), (21, DATA), (22, DATA), (23, DATA)] {
            tss[register] = selector.into();
        }
        put(&mut memory, task(n), tss.map(u32::to_le_bytes).as_flattened())?;
    }
    let mut tss = [0_u16; 22];
    (tss[7], tss[8]) = (u16::try_from(second)?, 2);
    (tss[12], tss[13]) = (0x2000, 0x6000);
    (tss[17], tss[18], tss[19], tss[20]) = (DATA, CODE32, DATA, DATA);
    put(&mut memory, task(2), tss.map(u16::to_le_bytes).as_flattened())?;
    ensure!(texts.0.len() <= (END - TEXT) as usize, "there is too much text");
    put(&mut memory, TEXT, &texts.0)?;

    let mut disk = boot_sector()?;
    disk.extend(memory);
    disk.resize(SECTOR * READ as usize, 0);
    disk.extend(b"old: read its disk\n\0");
    disk.resize(1 << 20, 0);
    Ok(disk)
}

fn main() -> Result<()> {
    let path = std::env::args().nth(1).context("the file of the disk")?;
    std::fs::write(&path, disk()?).with_context(|| format!("cannot write {path}"))
}
