//! What is lent is what it is taken for.

use super::*;

/// Whoever makes one of a number that is not of this kind has lost.
macro_rules! handles {
    ($($name:ident)*) => {$(
        #[derive(Debug, PartialEq)]
        struct $name(u64);
        impl Lend for $name {
            const KIND: LentKind = LentKind::$name;
            fn number(&self) -> u64 {
                self.0
            }
            fn of_number(number: u64) -> Option<Self> {
                assert_eq!(number >> 8, Self::KIND as u64);
                Some(Self(number))
            }
        }
    )*};
}
handles! { Thread EventFd }

#[test]
fn no_handle_is_made_of_what_is_something_elses() {
    let mut numbers = Numbers::default();
    numbers.plain(LentFor::NestedRoot, 5).unwrap();
    numbers.lend(LentFor::Vcpu, &Thread(0x601)).unwrap();
    numbers.lend(LentFor::IoEvent, &EventFd(0x402)).unwrap();
    numbers.lend_number::<EventFd>(LentFor::Resampler, 0).unwrap();
    let numbers = numbers.into_inner();
    let mut lent = Lent::new(&numbers);
    assert_eq!(lent.plain(LentFor::NestedRoot), Some(5));
    assert_eq!(lent.handle(LentFor::Vcpu), Some(Thread(0x601)));
    assert_eq!(lent.optional(LentFor::IoEvent), Some(Some(EventFd(0x402))));
    assert!(!lent.is_over());
    assert_eq!(lent.optional::<EventFd>(LentFor::Resampler), Some(None));
    assert!(lent.is_over() && lent.plain(LentFor::NestedRoot).is_none());
    // Of another type, for something else, no handle, nothing.
    let second = || {
        let mut lent = Lent::new(&numbers);
        lent.plain(LentFor::NestedRoot);
        lent
    };
    assert_eq!(second().handle::<EventFd>(LentFor::Vcpu), None);
    assert_eq!(second().handle::<Thread>(LentFor::Run), None);
    assert_eq!(second().optional::<EventFd>(LentFor::Vcpu), None);
    assert_eq!(second().plain(LentFor::Vcpu), None);
    assert_eq!(Lent::new(&numbers).handle::<Thread>(LentFor::NestedRoot), None);
    assert_eq!(Lent::new(&numbers[7..]).handle::<EventFd>(LentFor::Resampler), None);
    assert_eq!(Lent::new(&numbers[..1]).plain(LentFor::NestedRoot), None, "cut short");
}
