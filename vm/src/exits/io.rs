//! IN, OUT and their string forms (APM 15.10.2).

use crate::Ctx;
use crate::run::Next;
use crate::user::{Pending, UserExit};
use arch::IoExit;
use host::{Cpu, Host, SharedPage};

pub fn handle<H: Host>(ctx: &mut Ctx<'_, H>, io: IoExit) -> Next {
    ctx.me.stats.io_exits.count();
    if io.string() {
        return ctx.emulate();
    }
    if io.input() { input(ctx, io) } else { output(ctx, io) }
}

fn output<H: Host>(ctx: &mut Ctx<'_, H>, io: IoExit) -> Next {
    let value = ctx.core.cpu.gpr(0) & mask(io.size());
    // RIP moves on before user space sees the write: nothing is left to be done when it comes back.
    let next = ctx.advance(io.next_rip);
    let bytes = value.to_le_bytes();
    if ctx.vm.device_port_write(io.port(), bytes.get(..io.size().into()).unwrap_or(&bytes)) {
        return next;
    }
    ctx.me.pio_page().set_word(0, value);
    // A debugger's step ends when user space has seen the write.
    ctx.core.mmio_fragments.step_ends = next != Next::Resume;
    ctx.core.pending = Pending::PioOut;
    Next::User(UserExit::Io { input: false, size: io.size(), port: io.port(), count: 1 })
}

fn input<H: Host>(ctx: &mut Ctx<'_, H>, io: IoExit) -> Next {
    let mut value = [0; 8];
    if let Some(bytes) = value.get_mut(..io.size().into()) {
        if ctx.vm.device_port_read(io.port(), bytes) {
            finish_input(ctx, io.size(), u64::from_le_bytes(value));
            return ctx.advance(io.next_rip);
        }
    }
    // Like stock KVM, RIP stays at the instruction until the answer is there, so that user space that looks at the
    // registers sees the IN that it serves.
    ctx.core.io_next_rip = io.next_rip;
    ctx.core.pending = Pending::PioIn { size: io.size(), count: 1 };
    Next::User(UserExit::Io { input: true, size: io.size(), port: io.port(), count: 1 })
}

/// User space answered an IN: the value lies in the PIO page.
pub fn complete_input<H: Host>(ctx: &mut Ctx<'_, H>, size: u8) -> Next {
    let value = ctx.me.pio_page().word(0);
    finish_input(ctx, size, value & mask(size));
    let rip = ctx.core.io_next_rip;
    ctx.advance(rip)
}

/// The bits of an operand of 1, 2 or 4 bytes.
const fn mask(size: u8) -> u64 {
    u64::MAX >> (64 - 8 * (size as u32 & 7))
}

/// AL, AX or EAX; a 32-bit result clears the upper half (APM volume 1, 3.1.2). `value` has no bits above its size.
fn finish_input<H: Host>(ctx: &mut Ctx<'_, H>, size: u8, value: u64) {
    let kept = if size == 4 { 0 } else { ctx.core.cpu.gpr(0) & !mask(size) };
    ctx.core.cpu.set_gpr(0, kept | value);
}
