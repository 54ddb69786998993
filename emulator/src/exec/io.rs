//! IN and OUT, the permission to do them (APM vol. 2, 12.2.4), and CLI and STI, which need the same privilege.

use super::{Res, Shadow, Step};
use crate::flags::{IF, IOPL};
use crate::insn::{Mode, Op, Seg};
use crate::machine::{Access, Exception, Machine};

impl<M: Machine> Step<'_, M> {
    pub(super) fn port_in(&mut self) -> Res {
        let (port, size) = (self.read(1)? as u16, self.insn.opsize);
        self.check_port(port, size)?;
        let mut bytes = [0; 4];
        if let Some(part) = bytes.get_mut(..size.into()) {
            self.m.pio_in(port, size, part)?;
        }
        self.write(0, u32::from_le_bytes(bytes).into())
    }

    pub(super) fn port_out(&mut self) -> Res {
        let (port, size) = (self.read(0)? as u16, self.insn.opsize);
        let value = self.read(1)?;
        self.check_port(port, size)?;
        if let Some(part) = value.to_le_bytes().get(..size.into()) {
            self.m.pio_out(port, part)?;
        }
        Ok(())
    }

    /// The current privilege level is above IOPL.
    fn above_iopl(&self) -> bool {
        u64::from(self.m.cpl()) > (self.flags & IOPL) >> 12
    }

    /// #GP(0) unless `size` ports from `port` on may be used: by IOPL, or by the permission map in the TSS.
    pub(super) fn check_port(&mut self, port: u16, size: u8) -> Res {
        let by_iopl = match self.insn.mode {
            Mode::Real => true,
            Mode::V86 => false,
            _ => !self.above_iopl(),
        };
        if by_iopl {
            return Ok(());
        }
        let refused = Exception::gp(0);
        let tss = self.m.segment(Seg::Tr);
        let limit = u64::from(tss.limit);
        // Only 32-bit (and 64-bit) TSSs, types 9 and 11, have the map. Its offset is at byte 0x66.
        if !tss.present() || tss.attr & 0x1d != 9 || limit < 0x67 {
            return Err(refused.into());
        }
        let map = self.load(tss.base.wrapping_add(0x66), 2, Access::System)?;
        // Two bytes are always read: the bits of one access may span them.
        let at = map + u64::from(port >> 3);
        if at + 1 > limit {
            return Err(refused.into());
        }
        let bits = self.load(tss.base.wrapping_add(at), 2, Access::System)?;
        let wanted = (1_u64 << (size & 7)) - 1;
        if bits >> (port & 7) & wanted == 0 { Ok(()) } else { Err(refused.into()) }
    }

    /// CLI and STI; without virtual interrupts (CR4.PVI, VME), which are not implemented.
    pub(super) fn interrupt_flag(&mut self) -> Res {
        self.require_iopl3_in_v86()?;
        if self.insn.mode != Mode::V86 && self.above_iopl() {
            return Err(Exception::gp(0).into());
        }
        if self.insn.op == Op::Cli {
            self.flags &= !IF;
        } else {
            if self.flags & IF == 0 {
                self.done.shadow = Some(Shadow::Sti);
            }
            self.flags |= IF;
        }
        Ok(())
    }
}
