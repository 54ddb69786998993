//! What two engines have while a VM goes from one to the other ([`host::Lend`]): handles that are a pointer each.

/// Implements it for a type of this kind that is a counted reference to something of the base's, of which the function gets another
/// one.
macro_rules! lend {
    ($type:ident, $kind:ident, $get:ident) => {
        impl host::Lend for $type {
            const KIND: host::LentKind = host::LentKind::$kind;

            fn number(&self) -> u64 {
                self.0.as_ptr().expose_provenance() as u64
            }

            fn of_number(number: u64) -> Option<Self> {
                let it = core::ptr::NonNull::new(core::ptr::with_exposed_provenance_mut(number as usize))?;
                // SAFETY: by contract of the trait it is one that lives.
                unsafe { crate::shim::$get(it.as_ptr()) };
                Some(Self(it))
            }
        }
    };
}
pub(crate) use lend;
