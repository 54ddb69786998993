//! What has a number while two engines have it: [`host::Lend`] in user space. A number is good only while a handle lives, as in the
//! kernel, and here that is looked at.

use crate::alloc::unnoted;
use parking_lot::Mutex;
use std::any::Any;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::thread::{self, ThreadId};

/// With the thread that asked for the number, to whose account what is kept belongs.
type Entry = (ThreadId, Weak<dyn Any + Send + Sync>);
static ALL: Mutex<BTreeMap<u64, Entry>> = Mutex::new(BTreeMap::new());
/// After so many numbers a thread looks through all for those of its own that nobody needs any more.
const MANY: usize = 4096;

thread_local! {
    static ASKED: Cell<usize> = const { Cell::new(0) };
}

/// The number of what the handle is to.
pub(crate) fn number<T: Any + Send + Sync>(of: &Arc<T>) -> u64 {
    let number = Arc::as_ptr(of).addr() as u64;
    if ASKED.replace(ASKED.get() + 1) > MANY {
        forget();
    }
    let weak: Weak<T> = Arc::downgrade(of);
    unnoted(|| ALL.lock().insert(number, (thread::current().id(), weak)));
    number
}

/// Numbers that this thread has asked for and nobody needs any more keep no memory from here on.
pub(crate) fn forget() {
    ASKED.set(0);
    let me = thread::current().id();
    let mut gone: Vec<_> = unnoted(|| {
        let mut all = ALL.lock();
        let is_gone = |entry: &Entry| entry.0 == me && entry.1.strong_count() == 0;
        let numbers: Vec<u64> = all.iter().filter(|(_, entry)| is_gone(entry)).map(|(number, _)| *number).collect();
        numbers.iter().filter_map(|number| all.remove(number)).collect()
    });
    // Their memory is on this thread's account, that of the list is not.
    while gone.pop().is_some() {}
    unnoted(|| drop(gone));
}

/// What has the number.
pub(crate) fn of_number<T: Any + Send + Sync>(number: u64) -> Option<Arc<T>> {
    let one = ALL.lock().get(&number)?.1.upgrade()?;
    one.downcast().ok()
}

/// Implements [`host::Lend`] for a type of this kind that is an [`Arc`] of something.
macro_rules! lend {
    ($($type:ident = $kind:ident)*) => {$(
        impl host::Lend for $type {
            const KIND: host::LentKind = host::LentKind::$kind;

            fn number(&self) -> u64 {
                $crate::lent::number(&self.0)
            }
            fn of_number(number: u64) -> Option<Self> {
                $crate::lent::of_number(number).map(Self)
            }
        }
    )*};
}
pub(crate) use lend;
