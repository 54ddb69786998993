//! What a panic in the module does (`linux/src/panic.rs`): modules that panic when they are asked to, in an emulated host.

use crate::{
    env::Env,
    host::{Boot, Flavour, Machine},
    kernels::{self, Kernel},
    module, object, payload,
    verdict::Verdict,
};
use anyhow::{Result, bail, ensure};

/// The kernel that it is looked at on.
pub const KERNEL: Kernel = Kernel::V6_12;

/// A thread dies in KVM_RUN, and the host and its other VMs go on.
const THREAD: &str = "echo 0 >/proc/sys/kernel/panic_on_oops; /payload/panicking loop && /payload/panicking fresh && echo 'the host goes on'";
/// The machine stops.
const MACHINE: &str = "echo 0 >/proc/sys/kernel/panic_on_oops; /payload/panicking lock; echo 'the host goes on'";

pub fn run(env: &Env, machine: &Machine) -> Result<()> {
    let object = object::build_for_tests(env, "panics")?;
    let out = env.target().join("modules").join("panics");
    module::build_with(env, &kernels::fetch(env, KERNEL)?.headers, &out, &object)?;
    let program = payload::file(&payload::build(env)?, "panicking")?;
    let boot = |script| {
        let mut boot = Boot::new(KERNEL, Flavour::Ours, script);
        boot.ours = Some(out.clone());
        (boot.smp, boot.icount) = (1, true);
        boot.files.push(program.clone());
        machine.boot(env, &boot)
    };
    let thread = boot(THREAD)?;
    let Verdict::HostKernel(complaints) = &thread.verdict else { bail!("no panic: {}", thread.explain()) };
    let all = format!("--- output\n{}\n--- host kernel log\n{}", thread.output, thread.log);
    ensure!(thread.output.contains("the host goes on"), "the host did not go on\n{all}");
    ensure!(thread.log.contains("panic at linux/src/on_purpose.rs:"), "it does not say where\n{all}");
    // The thread's own end, and nothing that came of it.
    let others =
        complaints.iter().filter(|line| !line.contains("Oops: invalid opcode") && !line.contains("Call Trace:"));
    let others: Vec<&String> = others.collect();
    ensure!(others.is_empty(), "the host complained of more: {others:?}\n{all}");
    let machine = boot(MACHINE)?;
    let all = format!("--- output\n{}\n--- host kernel log\n{}", machine.output, machine.log);
    ensure!(!machine.output.contains("the host goes on"), "the host went on\n{all}");
    let last_words = "Kernel panic - not syncing: kvm: panic at linux/src/on_purpose.rs:";
    ensure!(machine.log.contains(last_words), "the machine did not stop as it should\n{all}");
    Ok(())
}
