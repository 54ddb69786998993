//! Declares a hardware or ABI layout with the offset of every field, and asserts each.

/// `layout! { pub struct Name: SIZE { 0x00 => pub field: Type, ... } }` declares a `repr(C)` struct with public
/// documentation and checks size and offsets at compile time. Reserved fields are named by offset.
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
    };
}
