//! The section of the kernel's exception table.
//!
//! In user space, where tests walk it, the linker has to be told that it is used ("R"); a kernel module is not
//! subject to garbage collection.

#[cfg(target_os = "none")]
macro_rules! extable {
    () => {
        ".pushsection __ex_table, \"a\""
    };
}

#[cfg(not(target_os = "none"))]
macro_rules! extable {
    () => {
        ".pushsection __ex_table, \"aR\""
    };
}

pub(crate) use extable;
