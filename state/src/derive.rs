//! Macros that derive [`State`](crate::State) and [`Value`](crate::Value). Each names all fields, variants or units of a type: the compiler refuses
//! one that is missing, and the order here is the order in the section, for good.

/// Derives [`State`](crate::State) for a struct from its fields.
///
/// - `value Name { a, b, c since 2 = 0 }` is made anew when it is read: [`Value`](crate::Value) too. Field `c` came with version 2 of
///   the sections that it is in; older ones have 0 for it.
/// - `place Name { a, b; not c, d }` is read in place; `c` and `d` are no state, or somebody else's: they stay as they are.
///   Generic ones are written `place [H: Host] Name<H> { ... }`.
/// - `wrap Name` is a tuple struct of one field, `inner Name` one that is read in place only.
#[macro_export]
macro_rules! state {
    () => {};
    (value $name:ident { $($f:ident $(since $v:literal = $d:expr)?),* $(,)? } $($rest:tt)*) => {
        impl $crate::State for $name {
            fn save(&self, w: &mut $crate::Writer) {
                let Self { $($f),* } = self;
                $($crate::state!(@save w $f $($v $d)?);)*
            }
            fn load(&mut self, r: &mut $crate::Reader<'_>) -> ::core::result::Result<(), $crate::Refused> {
                *self = <Self as $crate::Value>::read(r)?;
                Ok(())
            }
        }
        impl $crate::Value for $name {
            fn read(r: &mut $crate::Reader<'_>) -> ::core::result::Result<Self, $crate::Refused> {
                Ok(Self { $($f: $crate::state!(@read r $($v $d)?)),* })
            }
        }
        $crate::state! { $($rest)* }
    };
    (place $([$($g:tt)*])? $name:ident $(<$t:ident>)? {
        $($f:ident $(since $v:literal = $d:expr)?),* $(,)?
        $(; not $($n:ident),* $(,)?)?
    } $($rest:tt)*) => {
        impl $(<$($g)*>)? $crate::State for $name $(<$t>)? {
            fn save(&self, w: &mut $crate::Writer) {
                let Self { $($f,)* $($($n: _,)*)? } = self;
                $($crate::state!(@save w $f $($v $d)?);)*
            }
            fn load(&mut self, r: &mut $crate::Reader<'_>) -> ::core::result::Result<(), $crate::Refused> {
                let Self { $($f,)* $($($n: _,)*)? } = self;
                $($crate::state!(@load r $f $($v $d)?);)*
                Ok(())
            }
        }
        $crate::state! { $($rest)* }
    };
    (wrap $name:ident $($rest:tt)*) => {
        impl $crate::Value for $name {
            fn read(r: &mut $crate::Reader<'_>) -> ::core::result::Result<Self, $crate::Refused> {
                $crate::Value::read(r).map(Self)
            }
        }
        $crate::state! { inner $name $($rest)* }
    };
    (inner $name:ident $($rest:tt)*) => {
        impl $crate::State for $name {
            fn save(&self, w: &mut $crate::Writer) {
                $crate::State::save(&self.0, w);
            }
            fn load(&mut self, r: &mut $crate::Reader<'_>) -> ::core::result::Result<(), $crate::Refused> {
                $crate::State::load(&mut self.0, r)
            }
        }
        $crate::state! { $($rest)* }
    };
    (@save $w:ident $f:ident) => { $crate::State::save($f, $w) };
    (@save $w:ident $f:ident $v:literal $d:expr) => { if $w.since($v, *$f != $d) { $crate::State::save($f, $w) } };
    (@read $r:ident) => { $crate::Value::read($r)? };
    (@read $r:ident $v:literal $d:expr) => { if $r.version() >= $v { $crate::Value::read($r)? } else { $d } };
    (@load $r:ident $f:ident) => { $crate::State::load($f, $r)? };
    (@load $r:ident $f:ident $v:literal $d:expr) => {
        if $r.version() >= $v { $crate::State::load($f, $r)? } else { *$f = $d }
    };
}

/// Derives [`State`](crate::State) and [`Value`](crate::Value) for an enum: `Name { 0 = A, 1 = B { x, y }, 2 = C(z), 3 since 2 = D }`. The numbers are
/// what is written.
#[macro_export]
macro_rules! tagged {
    () => {};
    ($name:ident {
        $($n:literal $(since $v:literal)? = $variant:ident $({ $($f:ident),* })? $(( $($t:ident),* ))?),* $(,)?
    } $($rest:tt)*) => {
        impl $crate::State for $name {
            fn save(&self, w: &mut $crate::Writer) {
                match self {
                    $(Self::$variant $({ $($f),* })? $(($($t),*))? => {
                        $(w.needs_version($v);)?
                        $crate::State::save(&($n as u16), w);
                        $($($crate::State::save($f, w);)*)?
                        $($($crate::State::save($t, w);)*)?
                    })*
                }
            }
            fn load(&mut self, r: &mut $crate::Reader<'_>) -> ::core::result::Result<(), $crate::Refused> {
                *self = <Self as $crate::Value>::read(r)?;
                Ok(())
            }
        }
        impl $crate::Value for $name {
            fn read(r: &mut $crate::Reader<'_>) -> ::core::result::Result<Self, $crate::Refused> {
                let n: u16 = $crate::Value::read(r)?;
                match n {
                    $($n => {
                        $($(let $t = $crate::Value::read(r)?;)*)?
                        Ok(Self::$variant $({ $($f: $crate::Value::read(r)?),* })? $(($($t),*))?)
                    })*
                    _ => Err(r.bad(stringify!($name))),
                }
            }
        }
        $crate::tagged! { $($rest)* }
    };
}

/// The same for an enum without fields: the place in the list is what is written. New ones go to its end, as `D since 2`.
#[macro_export]
macro_rules! units {
    ($name:ident { $($variant:ident $(since $v:literal)?),* $(,)? }) => {
        const _: () = {
            const ALL: &[$name] = &[$($name::$variant),*];
            impl $crate::State for $name {
                fn save(&self, w: &mut $crate::Writer) {
                    // One that is missing in the list is missing here.
                    match self {
                        $(Self::$variant => { $(w.needs_version($v);)? })*
                    }
                    let place = ALL.iter().position(|x| x == self).map_or(u16::MAX, |n| n as u16);
                    $crate::State::save(&place, w);
                }
                fn load(&mut self, r: &mut $crate::Reader<'_>) -> ::core::result::Result<(), $crate::Refused> {
                    *self = <Self as $crate::Value>::read(r)?;
                    Ok(())
                }
            }
            impl $crate::Value for $name {
                fn read(r: &mut $crate::Reader<'_>) -> ::core::result::Result<Self, $crate::Refused> {
                    let n: u16 = $crate::Value::read(r)?;
                    // INDEX: what was written chooses a constant of ours.
                    ALL.get(usize::from(n)).copied().ok_or(r.bad(stringify!($name)))
                }
            }
        };
    };
}
