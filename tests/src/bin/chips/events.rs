//! Eventfds with resampling, and coalesced writes.

use crate::hand::{Deed, Hand};
use anyhow::Result;
use kvm_ioctls::IoEventAddress;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};

/// An eventfd that does not block.
fn eventfd() -> Result<File> {
    // SAFETY: the descriptor that the call returns is nobody else's; -1 is caught below.
    let file = unsafe {
        let fd = libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        anyhow::ensure!(fd >= 0, "eventfd");
        File::from_raw_fd(fd)
    };
    Ok(file)
}

fn count(mut file: &File) -> u64 {
    let mut count = [0; 8];
    file.read_exact(&mut count).map_or(0, |()| u64::from_le_bytes(count))
}

/// Signals an irqfd. Stock raises the line in a kernel thread.
fn raise(event: &mut File) -> Result<()> {
    event.write_all(&1u64.to_le_bytes())?;
    std::thread::sleep(std::time::Duration::from_millis(100));
    Ok(())
}

fn irqfd(hand: &Hand, event: &File, resample: Option<&File>, gsi: u32, flags: u32) -> i32 {
    const KVM_IRQFD: u64 = 0x4020_ae76;
    let resample = resample.map_or(0, |f| f.as_raw_fd() as u32);
    let arg = [event.as_raw_fd() as u32, gsi, flags, resample, 0, 0, 0, 0];
    // SAFETY: the argument is a `struct kvm_irqfd` that lives through the call.
    let r = unsafe { libc::ioctl(hand.client.vm.as_raw_fd(), KVM_IRQFD as libc::Ioctl, arg.as_ptr()) };
    if r == 0 { 0 } else { std::io::Error::last_os_error().raw_os_error().unwrap_or(-1) }
}

/// Level interrupts by eventfd, through the IOAPIC and the 8259.
pub fn resampling() -> Result<()> {
    let mut hand = Hand::new(false)?;
    let (mut event, again, bad) = (eventfd()?, eventfd()?, File::open("/dev/null")?);
    println!("irqfd: bad {} {}", irqfd(&hand, &bad, None, 10, 0), irqfd(&hand, &event, Some(&bad), 10, 2));
    println!("irqfd: {} {}", irqfd(&hand, &event, Some(&again), 10, 2), irqfd(&hand, &event, None, 11, 0));
    hand.store(0xfec0_0000, 0x10 + 20)?;
    hand.store(0xfec0_0010, 1 << 15 | 0x3a)?;
    for round in 0..3 {
        raise(&mut event)?;
        // Until the handler ends it nobody is told.
        println!("irqfd: {round} before {}", count(&again));
        println!("irqfd: {round} took {:x?}, told {}", hand.take(Deed::Open)?, count(&again));
    }
    println!("irqfd: also by hand {} {}", hand.line(10, 1)?, hand.line(10, 0)?);
    println!("irqfd: took {:x?}, told {}", hand.take(Deed::Open)?, count(&again));
    // What comes while the pin is masked is asked for again at the unmask.
    hand.store(0xfec0_0010, 1 << 15 | 1 << 16 | 0x3a)?;
    raise(&mut event)?;
    println!("irqfd: masked took {:x?}, told {}", hand.take(Deed::Open)?, count(&again));
    hand.store(0xfec0_0010, 1 << 15 | 0x3a)?;
    println!("irqfd: unmasked took {:x?}, told {}", hand.take(Deed::Open)?, count(&again));
    raise(&mut event)?;
    println!("irqfd: raised anew took {:x?}, told {}", hand.take(Deed::Open)?, count(&again));
    // The same at the 8259.
    hand.store(0xfec0_0010, 1 << 16)?;
    hand.start_pics()?;
    hand.out(0x4d1, 1 << 2)?;
    raise(&mut event)?;
    println!("irqfd: 8259 took {:x?}, told {}", hand.take(Deed::Open)?, count(&again));
    hand.out(0xa0, 0x20)?;
    hand.out(0x20, 0x20)?;
    println!("irqfd: 8259 told {}, took {:x?}", count(&again), hand.take(Deed::Open)?);
    println!("irqfd: undone {}", irqfd(&hand, &event, None, 10, 1));
    raise(&mut event)?;
    println!("irqfd: took {:x?}", hand.take(Deed::Open)?);
    // An eventfd that is closed without a word lets the line fall.
    hand.store(0xfec0_0000, 0x10 + 20)?;
    hand.store(0xfec0_0010, 1 << 15 | 1 << 16 | 0x3a)?;
    println!("irqfd: again {}", irqfd(&hand, &event, Some(&again), 10, 2));
    raise(&mut event)?;
    drop(event);
    std::thread::sleep(std::time::Duration::from_millis(200));
    hand.store(0xfec0_0010, 1 << 15 | 0x3a)?;
    println!("irqfd: closed, took {:x?}, told {}", hand.take(Deed::Open)?, count(&again));
    Ok(())
}

/// Writes that wait in the ring.
pub fn coalescing() -> Result<()> {
    let mut hand = Hand::new(false)?;
    let mmio = IoEventAddress::Mmio(0xd000_0000);
    let pio = IoEventAddress::Pio(0x80);
    hand.client.vm.register_coalesced_mmio(mmio, 0x1000)?;
    hand.client.vm.register_coalesced_mmio(pio, 1)?;
    // SAFETY: the page is the kernel's and ours; it is only looked at, as bytes.
    let ring = unsafe { memmap2::MmapOptions::new().offset(2 * 4096).len(4096).map(hand.vcpu.as_raw_fd())? };
    hand.store(0xd000_0010, 0xdead_beef)?;
    hand.out(0x80, 0x55)?;
    hand.store(0xd000_0ffc, 7)?;
    println!("ring: {:02x?}", &ring[..80]);
    for _ in 3..169 {
        hand.out(0x80, 1)?;
    }
    println!("ring: {:02x?}", &ring[..8]);
    println!("ring: full {}", hand.out(0x80, 1).is_err());
    Ok(())
}
