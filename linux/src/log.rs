//! One line in the kernel log.

use crate::shim;

/// At level error.
pub fn err(text: &str) {
    // SAFETY: the text is valid for its length.
    unsafe { shim::hsave_log_err(text.as_ptr(), text.len()) }
}

/// At level warning, rate limited, with a number.
pub fn warn(text: &str, value: u64) {
    // SAFETY: as above.
    unsafe { shim::hsave_log_warn(text.as_ptr(), text.len(), value) }
}

/// One field of a VMCB.
pub fn field(name: &str, value: u64) {
    // SAFETY: as above.
    unsafe { shim::hsave_log_field(name.as_ptr(), name.len(), value) }
}

/// One segment register of a VMCB.
pub fn segment(name: &str, s: &arch::Segment) {
    // SAFETY: as above.
    unsafe { shim::hsave_log_segment(name.as_ptr(), name.len(), s.selector, s.attrib.0, s.limit, s.base) }
}
