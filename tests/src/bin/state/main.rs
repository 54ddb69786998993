//! What user space sees of a vCPU's state, and what becomes of what it sets, printed line by line: at each kind of exit,
//! with events on their way, under a debugger, without interrupt controllers in the kernel. The same program runs on
//! stock kvm-amd and on ours, and every line is compared.

mod checks;
mod debugger;
mod events;
mod exits;
mod guest;
mod instructions;
mod interrupts;

use anyhow::Result;

fn main() -> Result<()> {
    let only = std::env::args().nth(1).unwrap_or_default();
    let parts: [tests::check::Check; 10] = [
        ("exits", exits::completions),
        ("debugger", debugger::leaves_no_trace),
        ("events", events::software),
        ("shown", events::shown),
        ("interrupts", interrupts::without_controllers),
        ("start", interrupts::waiting_for_init),
        ("checks", checks::registers),
        ("fixed", checks::fixed_once_run),
        ("nested", checks::nested_state),
        ("instructions", instructions::all),
    ];
    for (_, part) in parts.iter().filter(|(name, _)| name.contains(&only)) {
        part()?;
    }
    Ok(())
}
