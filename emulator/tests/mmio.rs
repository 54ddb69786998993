//! Accesses that userspace answers: restart of reads, posting of writes, and repeated string instructions over both.

mod fake;

use emulator::{Exception, MAX_ITERATIONS, Stop};
use fake::{Fake, Posted, Wanted, ok, run};

const MMIO: u64 = 0xfee0_0000;

fn machine() -> Fake {
    let mut m = Fake::long();
    m.map(0x1000, 0x4000);
    m.mmio = MMIO..MMIO + 0x1000;
    m.gpr[3] = MMIO + 0x20;
    m
}

/// Runs until userspace is needed, expects this access, and answers it.
fn answer(m: &mut Fake, bytes: &[u8], linear: u64, data: &[u8]) {
    assert_eq!(run(m, bytes), Err(Stop::NeedUser), "{bytes:02x?}");
    assert_eq!(m.wanted, Some(Wanted::Memory { linear, size: data.len() }));
    m.log.push(data.to_vec());
}

fn posted(linear: u64, data: &[u8]) -> Posted {
    Posted::Memory { linear, data: data.to_vec() }
}

#[test]
fn a_load_restarts_with_the_answer() {
    let mut m = machine();
    m.gpr[0] = u64::MAX;
    let load = [0x8b, 0x03]; // mov eax, [rbx]
    answer(&mut m, &load, MMIO + 0x20, &[1, 2, 3, 4]);
    assert_eq!((m.gpr[0], m.rip), (u64::MAX, 0));
    assert!(!ok(&mut m, &load).more);
    assert_eq!((m.gpr[0], m.rip, m.commits), (0x0403_0201, 2, 1));
    assert!(m.log.is_empty());
}

#[test]
fn a_store_is_posted_and_complete() {
    let mut m = machine();
    m.gpr[0] = 0x1122_3344_5566_7788;
    ok(&mut m, &[0x48, 0x89, 0x43, 0x08]); // mov [rbx+8], rax
    assert_eq!(m.posted, [posted(MMIO + 0x28, &m.gpr[0].to_le_bytes())]);
    assert_eq!(m.rip, 4);
}

#[test]
fn read_modify_write_reads_then_posts() {
    let mut m = machine();
    m.gpr[0] = 0x0f;
    for bytes in [[0x09_u8, 0x03].as_slice(), &[0xf0, 0x09, 0x03]] {
        // or [rbx], eax; the same with LOCK
        answer(&mut m, bytes, MMIO + 0x20, &[0xf0, 0, 0, 0x80]);
        assert!(m.posted.is_empty());
        ok(&mut m, bytes);
        assert_eq!(m.posted, [posted(MMIO + 0x20, &[0xff, 0, 0, 0x80])]);
        assert!(m.rflags & 0x80 != 0);
        m.posted.clear();
        m.rip = 0;
    }
}

#[test]
fn bt_with_a_memory_offset_reads_only() {
    let mut m = machine();
    m.gpr[1] = 32 * 3 + 5;
    let bytes = [0x0f, 0xa3, 0x0b]; // bt [rbx], ecx
    answer(&mut m, &bytes, MMIO + 0x2c, &[0x20, 0, 0, 0]);
    ok(&mut m, &bytes);
    assert!(m.posted.is_empty() && m.rflags & 1 != 0);
}

#[test]
fn push_and_pop_of_device_memory() {
    let mut m = machine();
    m.gpr[4] = 0x2000;
    let push = [0xff, 0x33]; // push qword [rbx]
    answer(&mut m, &push, MMIO + 0x20, &[9; 8]);
    assert_eq!(m.gpr[4], 0x2000);
    ok(&mut m, &push);
    assert_eq!((m.gpr[4], m.peek(0x1ff8, 8)), (0x1ff8, vec![9; 8]));
    ok(&mut m, &[0x8f, 0x03]); // pop qword [rbx]
    assert_eq!((m.gpr[4], m.posted.pop()), (0x2000, Some(posted(MMIO + 0x20, &[9; 8]))));
}

#[test]
fn two_reads_need_two_answers() {
    let mut m = machine();
    m.gpr[6] = MMIO;
    m.gpr[7] = MMIO + 0x100;
    let cmps = [0xa7]; // cmpsd
    answer(&mut m, &cmps, MMIO, &[1, 0, 0, 0]);
    answer(&mut m, &cmps, MMIO + 0x100, &[2, 0, 0, 0]);
    ok(&mut m, &cmps);
    assert_eq!((m.gpr[6], m.gpr[7]), (MMIO + 4, MMIO + 0x104));
    assert!(m.rflags & 1 != 0, "1 is below 2");
}

#[test]
fn vector_moves_to_and_from_devices() {
    let mut m = machine();
    let data: Vec<u8> = (0..32).collect();
    let load = [0xf3, 0x0f, 0x6f, 0x0b]; // movdqu xmm1, [rbx]
    m.ymm[1] = [0xaa; 32];
    answer(&mut m, &load, MMIO + 0x20, &data[..16]);
    ok(&mut m, &load);
    assert_eq!((&m.ymm[1][..16], &m.ymm[1][16..]), (&data[..16], [0xaa; 16].as_slice()));
    let load = [0xc5, 0xfe, 0x6f, 0x0b]; // vmovdqu ymm1, [rbx]
    answer(&mut m, &load, MMIO + 0x20, &data);
    ok(&mut m, &load);
    assert_eq!(m.ymm[1][..], data);
    ok(&mut m, &[0x0f, 0x2b, 0x0b]); // movntps [rbx], xmm1
    assert_eq!(m.posted, [posted(MMIO + 0x20, &data[..16])]);
}

#[test]
fn cmpxchg_on_a_device() {
    let mut m = machine();
    m.gpr[0] = 5;
    m.gpr[1] = 6;
    let bytes = [0xf0, 0x0f, 0xb1, 0x0b]; // lock cmpxchg [rbx], ecx
    answer(&mut m, &bytes, MMIO + 0x20, &[5, 0, 0, 0]);
    ok(&mut m, &bytes);
    assert_eq!(m.posted, [posted(MMIO + 0x20, &[6, 0, 0, 0])]);
    assert!(m.rflags & 0x40 != 0);
}

#[test]
fn a_fault_of_the_write_comes_after_the_read_and_changes_nothing() {
    let mut m = machine();
    m.gpr[6] = MMIO;
    m.gpr[7] = 0x9000;
    answer(&mut m, &[0xa5], MMIO, &[1, 2, 3, 4]); // movsd
    assert_eq!(run(&mut m, &[0xa5]), Err(Stop::Fault(Exception::pf(2, 0x9000))));
    assert_eq!((m.gpr[6], m.gpr[7], m.rip), (MMIO, 0x9000, 0));
}

#[test]
fn rep_movs_to_a_device_pauses_after_each_write() {
    let mut m = machine();
    m.poke(0x1000, &[1, 2, 3, 4, 5, 6]);
    (m.gpr[1], m.gpr[6], m.gpr[7]) = (3, 0x1000, MMIO);
    let bytes = [0x66, 0xf3, 0xa5]; // rep movsw
    for n in 0..3_u64 {
        let done = ok(&mut m, &bytes);
        assert_eq!(done.more, n < 2);
        let at = 2 * n as u8;
        assert_eq!(m.posted.pop(), Some(posted(MMIO + 2 * n, &[at + 1, at + 2])));
        assert!(m.posted.is_empty());
        assert_eq!((m.gpr[1], m.gpr[6], m.gpr[7]), (2 - n, 0x1002 + 2 * n, MMIO + 2 + 2 * n));
    }
    assert_eq!(m.rip, 3);
}

#[test]
fn rep_movs_from_a_device_goes_on_where_it_was() {
    let mut m = machine();
    (m.gpr[1], m.gpr[6], m.gpr[7]) = (2, MMIO, 0x1000);
    let bytes = [0xf3, 0xa4]; // rep movsb
    answer(&mut m, &bytes, MMIO, &[7]);
    answer(&mut m, &bytes, MMIO + 1, &[8]);
    assert_eq!((m.gpr[1], m.peek(0x1000, 2)), (1, vec![7, 0]));
    assert!(!ok(&mut m, &bytes).more);
    assert_eq!((m.gpr[1], m.peek(0x1000, 2)), (0, vec![7, 8]));
}

#[test]
fn rep_stos_keeps_what_it_did_before_a_fault() {
    let mut m = machine();
    (m.gpr[0], m.gpr[1], m.gpr[7]) = (0x55, 10, 0x4ffc);
    assert_eq!(run(&mut m, &[0xf3, 0xaa]), Err(Stop::Fault(Exception::pf(2, 0x5000)))); // rep stosb
    assert_eq!((m.gpr[1], m.gpr[7], m.rip), (6, 0x5000, 0));
    assert_eq!(m.peek(0x4ffc, 4), [0x55; 4]);
}

#[test]
fn long_repetitions_come_back_now_and_then() {
    let mut m = machine();
    (m.gpr[1], m.gpr[7]) = (MAX_ITERATIONS + 5, 0x1000);
    assert!(ok(&mut m, &[0xf3, 0xaa]).more);
    assert_eq!((m.gpr[1], m.rip), (5, 0));
    assert!(!ok(&mut m, &[0xf3, 0xaa]).more);
    assert_eq!((m.gpr[1], m.rip), (0, 2));
    // Exactly the budget is not "more".
    (m.gpr[1], m.gpr[7]) = (MAX_ITERATIONS, 0x1000);
    assert!(!ok(&mut m, &[0xf3, 0xaa]).more);
}

#[test]
fn single_stepping_stops_after_one_iteration() {
    let mut m = machine();
    m.rflags |= 0x100;
    (m.gpr[1], m.gpr[7]) = (3, 0x1000);
    let done = ok(&mut m, &[0xf3, 0xaa]);
    assert!(done.more && done.single_step);
    assert_eq!((m.gpr[1], m.rip), (2, 0));
}

#[test]
fn comparing_strings_stop_on_their_condition() {
    let mut m = machine();
    m.poke(0x1000, b"hello\0");
    (m.gpr[0], m.gpr[1], m.gpr[7]) = (0, u64::MAX, 0x1000);
    ok(&mut m, &[0xf2, 0xae]); // repne scasb
    assert_eq!((m.gpr[1], m.gpr[7]), (u64::MAX - 6, 0x1006));
    assert!(m.rflags & 0x40 != 0);
    // A count of zero changes nothing, not even flags.
    m.gpr[1] = 0;
    ok(&mut m, &[0xf3, 0xae]);
    assert_eq!(m.gpr[7], 0x1006);
    // Address size 32: only ECX counts, and the upper half is cleared.
    (m.gpr[1], m.gpr[6], m.gpr[7]) = (0xff_0000_0002, 0x1000, 0x1000);
    ok(&mut m, &[0x67, 0xf3, 0xa6]); // repe cmpsb
    assert_eq!((m.gpr[1], m.gpr[6]), (0, 0x1002));
}

#[test]
fn rep_ins_reads_a_sector_in_one_exit() {
    let mut m = machine();
    (m.gpr[1], m.gpr[2], m.gpr[7]) = (256, 0x1f0, 0x2000);
    let bytes = [0x66, 0xf3, 0x6d]; // rep insw
    assert_eq!(run(&mut m, &bytes), Err(Stop::NeedUser));
    assert_eq!(m.wanted, Some(Wanted::Port { port: 0x1f0, size: 2, count: 256 }));
    let sector: Vec<u8> = (0..512).map(|n| n as u8).collect();
    m.log.push(sector.clone());
    assert!(!ok(&mut m, &bytes).more);
    assert_eq!((m.peek(0x2000, 512), m.gpr[1], m.gpr[7]), (sector, 0, 0x2200));
}

#[test]
fn rep_ins_stops_at_the_page_and_asks_before_it_faults() {
    let mut m = machine();
    (m.gpr[1], m.gpr[2], m.gpr[7]) = (256, 0x1f0, 0x4ffd);
    let bytes = [0x66, 0xf3, 0x6d];
    assert_eq!(run(&mut m, &bytes), Err(Stop::NeedUser));
    assert_eq!(m.wanted, Some(Wanted::Port { port: 0x1f0, size: 2, count: 1 }));
    m.log.push(vec![1, 2]);
    // The next element crosses into a page that is not there: no port is read for it.
    assert_eq!(run(&mut m, &bytes), Err(Stop::Fault(Exception::pf(2, 0x5000))));
    assert_eq!((m.gpr[1], m.wanted), (255, None));
    // Downwards: one at a time.
    m.rflags |= 0x400;
    m.gpr[7] = 0x2000;
    assert_eq!(run(&mut m, &bytes), Err(Stop::NeedUser));
    assert_eq!(m.wanted, Some(Wanted::Port { port: 0x1f0, size: 2, count: 1 }));
}

#[test]
fn rep_outs_posts_one_element_at_a_time() {
    let mut m = machine();
    m.poke(0x1000, &[1, 2]);
    (m.gpr[1], m.gpr[2], m.gpr[6]) = (2, 0x3f8, 0x1000);
    let bytes = [0xf3, 0x6e]; // rep outsb
    for n in 1..=2 {
        assert_eq!(ok(&mut m, &bytes).more, n == 1);
        assert_eq!(m.posted, [Posted::Port { port: 0x3f8, data: vec![n] }]);
        m.posted.clear();
    }
}

#[test]
fn a_locked_instruction_that_loses_is_tried_again() {
    let mut m = machine();
    m.gpr[3] = 0x1000;
    m.poke(0x1000, &[7]);
    m.lose = 1;
    let inc = [0xf0, 0xfe, 0x03]; // lock inc byte [rbx]
    assert!(ok(&mut m, &inc).more);
    assert_eq!((m.peek(0x1000, 1), m.rip), (vec![7], 0));
    assert!(!ok(&mut m, &inc).more);
    assert_eq!((m.peek(0x1000, 1), m.rip), (vec![8], 3));
    // XCHG with memory is atomic without the prefix.
    m.lose = 1;
    assert!(ok(&mut m, &[0x86, 0x03]).more);
}
