//! IN, OUT and their string forms (APM 15.10.2).

use crate::Ctx;
use crate::run::Next;
use crate::user::{Pending, UserExit};
use arch::IoExit;
use host::{Cpu, Host, SharedPage};

pub fn handle<H: Host>(ctx: &mut Ctx<'_, H>, io: IoExit) -> Next {
    ctx.me.stats.io_exits.count();
    if io.string {
        return ctx.emulate();
    }
    if io.input { input(ctx, io) } else { output(ctx, io) }
}

fn output<H: Host>(ctx: &mut Ctx<'_, H>, io: IoExit) -> Next {
    let value = (ctx.core.cpu.gpr(0) as u32).to_le_bytes();
    let bytes = value.get(..io.size.into()).unwrap_or(&value);
    // RIP moves on before user space sees the write: nothing is left to be done when it comes back.
    let next = ctx.advance(io.next_rip);
    if ctx.vm.device_port_write(io.port, bytes) {
        return next;
    }
    ctx.me.pio_page().cells().write(0, bytes);
    ctx.core.pending = Pending::PioOut;
    Next::User(UserExit::Io { input: false, size: io.size, port: io.port, count: 1 })
}

fn input<H: Host>(ctx: &mut Ctx<'_, H>, io: IoExit) -> Next {
    let mut value = [0; 4];
    if let Some(bytes) = value.get_mut(..io.size.into()) {
        if ctx.vm.device_port_read(io.port, bytes) {
            finish_input(ctx, io.size, u32::from_le_bytes(value));
            return ctx.advance(io.next_rip);
        }
    }
    // Like stock KVM, RIP stays at the instruction until the answer is there, so that user space that looks at the
    // registers sees the IN that it serves.
    ctx.core.io_next_rip = io.next_rip;
    ctx.core.pending = Pending::PioIn { size: io.size, count: 1 };
    Next::User(UserExit::Io { input: true, size: io.size, port: io.port, count: 1 })
}

/// User space answered an IN: the value lies in the PIO page.
pub fn complete_input<H: Host>(ctx: &mut Ctx<'_, H>, size: u8) -> Next {
    let mut value = [0; 4];
    if let Some(bytes) = value.get_mut(..size.into()) {
        ctx.me.pio_page().cells().read(0, bytes);
    }
    finish_input(ctx, size, u32::from_le_bytes(value));
    let rip = ctx.core.io_next_rip;
    ctx.advance(rip)
}

/// AL, AX or EAX; a 32-bit result clears the upper half (APM volume 1, 3.1.2).
fn finish_input<H: Host>(ctx: &mut Ctx<'_, H>, size: u8, value: u32) {
    let old = ctx.core.cpu.gpr(0);
    let new = match size {
        1 => old & !0xff | u64::from(value & 0xff),
        2 => old & !0xffff | u64::from(value & 0xffff),
        _ => value.into(),
    };
    ctx.core.cpu.set_gpr(0, new);
}
