//! One instruction from bytes, as an exit handler would execute it.

use super::Fake;
use emulator::{Exception, Stop};

/// Executes one instruction given as bytes, as an exit handler does: decode (fetching what is missing), emulate.
pub fn run(m: &mut Fake, bytes: &[u8]) -> Result<emulator::Done, Stop> {
    m.begin();
    let insn = emulator::fetch(m, bytes)?;
    emulator::emulate(m, &insn)
}

/// The same where it has to succeed.
pub fn ok(m: &mut Fake, bytes: &[u8]) -> emulator::Done {
    run(m, bytes).unwrap_or_else(|stop| panic!("{bytes:02x?}: {stop:?}"))
}

/// The fault that an instruction raises; nothing has changed.
pub fn fault(m: &mut Fake, bytes: &[u8]) -> Exception {
    let before = m.clone();
    match run(m, bytes) {
        Err(Stop::Fault(e)) => {
            assert_eq!((m.gpr, m.rip, m.rflags), (before.gpr, before.rip, before.rflags), "{bytes:02x?}");
            assert_eq!((&m.pages, &m.segments), (&before.pages, &before.segments), "{bytes:02x?}");
            e
        }
        other => panic!("{bytes:02x?}: {other:?}"),
    }
}
