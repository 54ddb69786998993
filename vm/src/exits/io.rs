//! IN, OUT and their string forms (APM 15.10.2).

use crate::Ctx;
use crate::quirks::OUT_7E_INC_RIP;
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
    let bytes = value.to_le_bytes();
    if ctx.vm.device_port_write(io.port(), bytes.get(..io.size().into()).unwrap_or(&bytes)) {
        return ctx.advance(io.next_rip);
    }
    ctx.me.pio_page().set_word(0, value);
    if io.port() == 0x7e && ctx.vm.config.has_quirk(OUT_7E_INC_RIP) {
        // A debugger's step ends when user space has seen the write.
        let next = ctx.advance(io.next_rip);
        ctx.core.mmio_fragments.step_ends = next != Next::Resume;
        ctx.core.pending = Pending::PioOut;
    } else {
        ctx.core.pio = Pio::at(ctx, io);
        ctx.core.pending = Pending::FastPioOut;
    }
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
    ctx.core.pio = Pio::at(ctx, io);
    ctx.core.pending = Pending::FastPioIn { size: io.size() };
    Next::User(UserExit::Io { input: true, size: io.size(), port: io.port(), count: 1 })
}

/// The IN or OUT that user space serves. RIP stays at it until user space is back, so that who looks at the registers sees
/// the instruction that is served; but if RIP is another then, user space has put the guest elsewhere, and the
/// instruction is not carried out.
#[derive(Default)]
pub struct Pio {
    linear_rip: u64,
    next_rip: u64,
}

::state::state! {
    place Pio { linear_rip, next_rip }
}

impl Pio {
    fn at<H: Host>(ctx: &Ctx<'_, H>, io: IoExit) -> Self {
        Self { linear_rip: ctx.linear_rip(), next_rip: io.next_rip }
    }
}

/// User space has taken what an OUT wrote.
pub fn complete_output<H: Host>(ctx: &mut Ctx<'_, H>) -> Next {
    let Pio { linear_rip, next_rip } = ctx.core.pio;
    if ctx.linear_rip() == linear_rip { ctx.advance(next_rip) } else { Next::Resume }
}

/// User space answered an IN: the value lies in the PIO page.
pub fn complete_input<H: Host>(ctx: &mut Ctx<'_, H>, size: u8) -> Next {
    let Pio { linear_rip, next_rip } = ctx.core.pio;
    if ctx.linear_rip() != linear_rip {
        return Next::Resume;
    }
    let value = ctx.me.pio_page().word(0);
    finish_input(ctx, size, value & mask(size));
    ctx.advance(next_rip)
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
