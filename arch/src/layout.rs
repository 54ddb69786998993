//! Declares a hardware or ABI layout with the offset of every field, and asserts each.

/// `layout! { pub struct Name: SIZE { 0x00 => pub field: Type, ... } }` declares a `repr(C)` struct with public
/// documentation and checks size and offsets at compile time. Reserved fields are named by offset. As the state of a VM it is
/// all of its bytes.
#[macro_export]
macro_rules! layout {
    ($(#[$m:meta])* $v:vis struct $name:ident: $size:literal { $($(#[$fm:meta])* $off:literal => $fv:vis $f:ident: $t:ty,)* }) => {
        $(#[$m])*
        #[repr(C)]
        $v struct $name { $($(#[$fm])* $fv $f: $t,)* }
        const _: () = {
            assert!(core::mem::size_of::<$name>() == $size);
            $(assert!(core::mem::offset_of!($name, $f) == $off);)*
        };
        impl $crate::Zero for $name {
            const ZERO: Self = Self { $($f: <$t as $crate::Zero>::ZERO,)* };
        }
        impl $crate::state::State for $name {
            fn save(&self, w: &mut $crate::state::Writer) {
                $($crate::state::State::save(&self.$f, w);)*
            }
            fn load(&mut self, r: &mut $crate::state::Reader<'_>) -> Result<(), $crate::state::Refused> {
                $($crate::state::State::load(&mut self.$f, r)?;)*
                Ok(())
            }
        }
        impl $crate::Layout for $name {
            const FIELDS: &'static [(&'static str, usize)] = &[$((stringify!($f), $off),)*];
        }
    };
}

/// What [`layout!`](crate::layout!) has declared.
pub trait Layout {
    /// Fields, reserved ones included, with their offsets in bytes.
    const FIELDS: &'static [(&'static str, usize)];
}

/// A layout whose every byte may be zero.
pub trait Zero {
    /// All bytes zero.
    const ZERO: Self;
}

macro_rules! zero {
    ($($t:ty)*) => {$(impl Zero for $t { const ZERO: Self = 0; })*};
}
zero! { u8 u16 u32 u64 i32 i64 }

impl<T: Zero + Copy, const N: usize> Zero for [T; N] {
    const ZERO: Self = [T::ZERO; N];
}
