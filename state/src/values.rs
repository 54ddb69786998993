//! Numbers, and what is made of several values.

use crate::{Reader, Refused, State, Value, Why, Writer};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};

macro_rules! numbers {
    ($($t:ty)*) => {$(
        impl State for $t {
            #[inline]
            fn save(&self, w: &mut Writer) {
                w.put(&self.to_le_bytes());
            }
            #[inline]
            fn load(&mut self, r: &mut Reader<'_>) -> Result<(), Refused> {
                *self = Self::read(r)?;
                Ok(())
            }
        }
        impl Value for $t {
            #[inline]
            fn read(r: &mut Reader<'_>) -> Result<Self, Refused> {
                r.take().map(Self::from_le_bytes)
            }
        }
    )*};
}
numbers! { i8 u16 u32 u64 i32 i64 }

/// Many of them are written at once.
impl State for u8 {
    #[inline]
    fn save(&self, w: &mut Writer) {
        w.put(&[*self]);
    }
    #[inline]
    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), Refused> {
        *self = Self::read(r)?;
        Ok(())
    }
    fn save_all(all: &[Self], w: &mut Writer) {
        w.put(all);
    }
    fn load_all(all: &mut [Self], r: &mut Reader<'_>) -> Result<(), Refused> {
        r.fill(all)
    }
}

impl Value for u8 {
    #[inline]
    fn read(r: &mut Reader<'_>) -> Result<Self, Refused> {
        r.take().map(|[byte]| byte)
    }
}

/// Sizes and places are written as 64 bits, whatever the machine.
impl State for usize {
    fn save(&self, w: &mut Writer) {
        (*self as u64).save(w);
    }
    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), Refused> {
        *self = Self::read(r)?;
        Ok(())
    }
}

impl Value for usize {
    fn read(r: &mut Reader<'_>) -> Result<Self, Refused> {
        let n: u64 = r.value()?;
        Self::try_from(n).map_err(|_| r.bad("a size"))
    }
}

impl State for bool {
    fn save(&self, w: &mut Writer) {
        u8::from(*self).save(w);
    }
    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), Refused> {
        *self = Self::read(r)?;
        Ok(())
    }
}

impl Value for bool {
    fn read(r: &mut Reader<'_>) -> Result<Self, Refused> {
        match u8::read(r)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(r.bad("a yes or no")),
        }
    }
}

macro_rules! atomics {
    ($($t:ty)*) => {$(
        /// Nobody changes it meanwhile.
        impl State for $t {
            fn save(&self, w: &mut Writer) {
                self.load(Relaxed).save(w);
            }
            fn load(&mut self, r: &mut Reader<'_>) -> Result<(), Refused> {
                self.get_mut().load(r)
            }
        }
    )*};
}
atomics! { AtomicBool AtomicU8 AtomicU16 AtomicU32 AtomicU64 AtomicUsize }

impl<T: State> State for [T] {
    fn save(&self, w: &mut Writer) {
        T::save_all(self, w);
    }
    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), Refused> {
        T::load_all(self, r)
    }
}

impl<T: State, const N: usize> State for [T; N] {
    fn save(&self, w: &mut Writer) {
        self.as_slice().save(w);
    }
    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), Refused> {
        self.as_mut_slice().load(r)
    }
}

impl<T: Value + Default + Copy, const N: usize> Value for [T; N] {
    fn read(r: &mut Reader<'_>) -> Result<Self, Refused> {
        let mut all = [T::default(); N];
        all.load(r)?;
        Ok(all)
    }
}

impl<T: Value> State for Option<T> {
    fn save(&self, w: &mut Writer) {
        self.is_some().save(w);
        if let Some(value) = self {
            value.save(w);
        }
    }
    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), Refused> {
        *self = Self::read(r)?;
        Ok(())
    }
}

impl<T: Value> Value for Option<T> {
    fn read(r: &mut Reader<'_>) -> Result<Self, Refused> {
        if r.value()? { T::read(r).map(Some) } else { Ok(None) }
    }
}

impl<T: Value> State for Vec<T> {
    fn save(&self, w: &mut Writer) {
        w.count(self.len());
        self.as_slice().save(w);
    }
    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), Refused> {
        *self = Self::read(r)?;
        Ok(())
    }
}

impl<T: Value> Value for Vec<T> {
    fn read(r: &mut Reader<'_>) -> Result<Self, Refused> {
        let n = r.count()?;
        let mut all = Self::new();
        all.try_reserve_exact(n).map_err(|_| r.refuse(Why::NoMemory))?;
        for _ in 0..n {
            let value = r.value()?;
            // Says what the reservation has made true, so that no path that would grow is compiled.
            if all.len() == all.capacity() {
                return Err(r.refuse(Why::NoMemory));
            }
            all.push(value);
        }
        Ok(all)
    }
}

macro_rules! tuples {
    ($(($($t:ident $x:ident),*))*) => {$(
        impl<$($t: State),*> State for ($($t,)*) {
            fn save(&self, w: &mut Writer) {
                let ($($x,)*) = self;
                $($x.save(w);)*
            }
            fn load(&mut self, r: &mut Reader<'_>) -> Result<(), Refused> {
                let ($($x,)*) = self;
                $($x.load(r)?;)*
                Ok(())
            }
        }
        impl<$($t: Value),*> Value for ($($t,)*) {
            fn read(r: &mut Reader<'_>) -> Result<Self, Refused> {
                Ok(($($t::read(r)?,)*))
            }
        }
    )*};
}
tuples! { (A a, B b) (A a, B b, C c) }
