//! The order of the locks: who holds one takes only such as have a greater rank, and never two of the same. The simulator
//! checks it, so a lock names its rank where it is declared. ARCHITECTURE.md says what each is for.

/// `Vcpu::core`.
pub const CORE: u8 = 1;
/// `Vm::shape`.
pub const SHAPE: u8 = 2;
/// What the vCPUs of a Hyper-V guest share. Guest memory is accessed meanwhile.
pub const HYPERV: u8 = 3;
/// Changes of the memslots, one at a time.
pub const SLOT_CHANGES: u8 = 4;
/// The memslots.
pub const SLOTS: u8 = 5;
/// `Vm::ioevents`, `Vm::resamplers`, `Vm::msr_filter`, the zones of the coalesced ring, and a Hyper-V guest's connections.
pub const TABLES: u8 = 6;
/// The nested page tables. Nothing from here on sleeps or allocates.
pub const MMU: u8 = 7;
/// The invalidations that are in progress.
pub const INVALIDATIONS: u8 = 8;
/// `Vm::clock`.
pub const CLOCK: u8 = 9;
/// Who rebuilds the tables of local APICs.
pub const APICS: u8 = 10;
/// The PIT. From here on interrupts are off.
pub const PIT: u8 = 12;
/// The IOAPIC, or the 8259s.
pub const CONTROLLERS: u8 = 13;
/// Whoever reads a [`Snapshot`](crate::Snapshot).
pub const SNAPSHOT: u8 = 14;
