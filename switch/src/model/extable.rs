//! The exception table, as the kernel would search it.
#![cfg(any(test, feature = "model"))]

// SAFETY: the linker defines them at the ends of the section that the assembly fills.
unsafe extern "C" {
    static __start___ex_table: [i32; 3];
    static __stop___ex_table: [i32; 3];
}

/// Where the exception table sends a fault at `rip`.
pub(super) fn fixup(rip: u64) -> Option<u64> {
    let (mut entry, stop) = (&raw const __start___ex_table, &raw const __stop___ex_table);
    let target = |field: *const i32| {
        // SAFETY: a field of the table; offsets are relative to themselves.
        (field as u64).wrapping_add_signed(unsafe { *field } as i64)
    };
    while entry < stop {
        let from = entry.cast::<i32>();
        if target(from) == rip {
            return Some(target(from.wrapping_add(1)));
        }
        entry = entry.wrapping_add(1);
    }
    None
}
