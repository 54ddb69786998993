//! Pages: of user memory, and shared with user space.

use crate::{errno::from_kernel, shim};
use arch::{HostPa, Hva};
use core::ptr::{NonNull, with_exposed_provenance_mut};
use core::sync::atomic::AtomicU64;
use host::{Errno, Lend, LentKind, PAGE_SIZE, PageCells, Pfn, SharedPage, Stop, UserPage};

/// A page of user memory, referenced where it has a count; else the mmu notifier alone tells when it goes.
pub struct Page {
    pa: HostPa,
    flags: i32,
}

impl Page {
    /// See `Host::user_page`.
    pub fn get(hva: Hva, write: bool) -> Result<Self, Stop> {
        Self::ask(hva, write, true).map_err(stop)
    }

    /// See `Host::user_page_now`.
    pub fn get_now(hva: Hva, write: bool) -> Result<Option<Self>, Stop> {
        match Self::ask(hva, write, false) {
            Err(e) if from_kernel(e) == Errno::EAGAIN => Ok(None),
            Err(e) => Err(stop(e)),
            Ok(page) => Ok(Some(page)),
        }
    }

    /// Errors: those of the shim's.
    fn ask(hva: Hva, write: bool, wait: bool) -> Result<Self, i32> {
        let mut pa = 0;
        // SAFETY: any address may be asked for; `pa` is written on success.
        let flags = unsafe { shim::hsave_user_page(hva.0, write, wait, &mut pa) };
        if flags >= 0 { Ok(Self { pa: HostPa(pa), flags }) } else { Err(flags) }
    }
}

/// EROFS, which reaches nobody else.
const READ_ONLY: i32 = -30;

/// Why user memory cannot be used, by the shim's negative errno.
pub fn stop(err: i32) -> Stop {
    match from_kernel(err) {
        _ if err == READ_ONLY => Stop::ReadOnly,
        Errno::EFAULT => Stop::Fault,
        Errno::EHWPOISON => Stop::Poison,
        e => Stop::Errno(e),
    }
}

impl UserPage for Page {
    fn pfn(&self) -> Pfn {
        Pfn::from_host(self.pa)
    }

    fn writable(&self) -> bool {
        self.flags & shim::PAGE_WRITABLE != 0
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the reference from `get`.
        unsafe { shim::hsave_user_page_put(self.pa.0, self.flags) }
    }
}

/// A page of ours that user space maps.
pub struct KernelPage {
    va: NonNull<PageCells>,
    pa: HostPa,
}

// SAFETY: the page is reached through atomic cells only.
unsafe impl Send for KernelPage {}
// SAFETY: as above.
unsafe impl Sync for KernelPage {}

impl KernelPage {
    /// Zeroed. Errors: ENOMEM.
    pub fn new() -> Result<Self, Errno> {
        let mut pa = 0;
        // SAFETY: `pa` is written on success.
        let va = unsafe { shim::hsave_shared_alloc(&mut pa) };
        Ok(Self { va: NonNull::new(va.cast()).ok_or(Errno::ENOMEM)?, pa: HostPa(pa) })
    }

    /// `n`, if there is such a word.
    #[inline]
    fn place(n: usize) -> Option<usize> {
        (n < PAGE_SIZE / size_of::<u64>()).then_some(n)
    }
}

impl SharedPage for KernelPage {
    #[inline]
    fn cells(&self) -> &PageCells {
        // SAFETY: a whole page, ours until `drop`; cells allow for user space writing it meanwhile.
        unsafe { self.va.as_ref() }
    }

    fn pa(&self) -> HostPa {
        self.pa
    }

    #[inline]
    fn word(&self, n: usize) -> u64 {
        match Self::place(n) {
            // SAFETY: in our page, aligned; user space may write it meanwhile, which a volatile access allows for.
            Some(n) => unsafe { self.va.cast::<u64>().add(n).read_volatile() },
            None => 0,
        }
    }

    #[inline]
    fn set_word(&self, n: usize, value: u64) {
        if let Some(n) = Self::place(n) {
            // SAFETY: as above.
            unsafe { self.va.cast::<u64>().add(n).write_volatile(value) }
        }
    }
}

impl Lend for KernelPage {
    const KIND: LentKind = LentKind::SharedPage;

    fn number(&self) -> u64 {
        self.pa.0
    }

    fn of_number(number: u64) -> Option<Self> {
        // SAFETY: by contract of the trait it is a page that lives.
        let va = unsafe { shim::hsave_shared_get(number) };
        Some(Self { va: NonNull::new(va.cast())?, pa: HostPa(number) })
    }
}

impl Drop for KernelPage {
    fn drop(&mut self) {
        // SAFETY: our reference; mappings in user space and other handles have their own.
        unsafe { shim::hsave_shared_free(self.pa.0) }
    }
}

/// A counted reference to words of memory of the base's.
pub struct KernelWords {
    words: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: they are reached as atomics only.
unsafe impl Send for KernelWords {}
// SAFETY: as above.
unsafe impl Sync for KernelWords {}

impl KernelWords {
    /// All 0. Errors: ENOMEM.
    pub fn new(len: usize) -> Result<Self, Errno> {
        let words = NonNull::new(shim::hsave_words_alloc(len).cast()).ok_or(Errno::ENOMEM)?;
        Ok(Self { words, len })
    }
}

impl AsRef<[AtomicU64]> for KernelWords {
    #[inline]
    fn as_ref(&self) -> &[AtomicU64] {
        // SAFETY: so many they are, aligned, until `drop`.
        unsafe { core::slice::from_raw_parts(self.words.as_ptr(), self.len) }
    }
}

impl Lend for KernelWords {
    const KIND: LentKind = LentKind::Words;

    fn number(&self) -> u64 {
        self.words.as_ptr().expose_provenance() as u64
    }

    fn of_number(number: u64) -> Option<Self> {
        let words = NonNull::new(with_exposed_provenance_mut::<AtomicU64>(number as usize))?;
        // SAFETY: by contract of the trait they live.
        let len = unsafe { shim::hsave_words_get(words.as_ptr().cast()) };
        Some(Self { words, len })
    }
}

impl Drop for KernelWords {
    fn drop(&mut self) {
        // SAFETY: our reference.
        unsafe { shim::hsave_words_put(self.words.as_ptr().cast()) }
    }
}
