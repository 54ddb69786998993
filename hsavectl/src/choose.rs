//! `hsavectl use stock|hsave`: which pair modprobe loads, from now on and for the next boots, and that it is loaded now.
//!
//! The choice is a file in depmod's configuration, so that whoever runs depmod later (a new kernel's package, dkms) comes to the same
//! one, and a kernel that hsave is not built for has the stock pair whatever was chosen.

use crate::{
    base,
    modules::{self, MODULES, Pair},
    processes::{self, Holder},
    system::{Result, System},
};

/// Where the choice is kept.
pub const CHOICE: &str = "/etc/depmod.d/hsave.conf";

/// What `use` is asked for.
pub struct Choice {
    pub pair: Pair,
    /// What is in memory stays as it is.
    pub next_boot: bool,
}

/// Does it, telling each step to `say`.
pub fn run(system: &System, choice: &Choice, say: &mut dyn FnMut(&str)) -> Result<()> {
    if !system.is_root() {
        return Err(format!("this is for root: `sudo hsavectl use {}`", choice.pair));
    }
    let Choice { pair, next_boot } = *choice;
    let release = system.release()?;
    let before = modules::loaded(system);
    if before.is_some() && !system.exists("/sys/module/kvm/initstate") {
        return Err(format!("KVM is built into the kernel {release}: nothing can take its place"));
    }
    let place = place_of(system, pair, &release, next_boot)?;
    if pair == Pair::Hsave && !next_boot {
        modules::processor_fits(system)?;
    }
    // Somebody's VMs are looked for before anything is changed.
    let stays = before == Some(pair) && modules::is_what_is_on_disk(system, &release, place) != Some(false);
    let switches = !next_boot && !stays;
    if switches && before.is_some() {
        refuse_if_used(system, pair)?;
        refuse_strangers(system)?;
        refuse_several_engines(system)?;
    }

    let old = system.text(CHOICE);
    let written = write(system, pair, place).and_then(|()| index(system, say));
    let result = written.and_then(|()| {
        if !next_boot || modules::kernels(system).contains(&release) {
            demand(system, pair, &release)?;
        }
        if switches { load(system, pair, before, say) } else { Ok(()) }
    });
    if let Err(why) = result {
        return Err(undo(system, old.as_deref(), before, switches, &why, say));
    }
    say(&match (next_boot, switches) {
        (true, _) => format!("{pair} is what the next boot loads; what is in memory was left alone"),
        (false, false) => format!("{pair} serves /dev/kvm already, and will after the next boot"),
        (false, true) => format!("{pair} serves /dev/kvm now, and will after the next boot"),
    });
    Ok(())
}

/// Where the pair lies, for the running kernel; for the next boot, any kernel will do.
fn place_of(system: &System, pair: Pair, release: &str, next_boot: bool) -> Result<&'static str> {
    let place = modules::place(system, pair, release);
    let any = || modules::kernels(system).iter().find_map(|kernel| modules::place(system, pair, kernel));
    let found = if next_boot { place.or_else(any) } else { place };
    found.ok_or_else(|| match pair {
        Pair::Hsave => format!(
            "hsave is not built for the running kernel {release}: `apt install linux-headers-{release}`, then `dkms autoinstall`; \
             `dkms status` says what came of it, and a kernel that hsave does not support is skipped"
        ),
        Pair::Stock => format!("the kernel {release} has no kvm.ko and kvm-amd.ko of its own in /lib/modules/{release}/kernel"),
    })
}

fn refuse_if_used(system: &System, pair: Pair) -> Result<()> {
    let holders = processes::holders(system);
    if holders.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = holders.iter().map(Holder::line).collect();
    Err(format!(
        "/dev/kvm is in use:\n  {}\nShut these down and try again, or `hsavectl use {pair} --next-boot` for after the next boot. \
         Nothing was changed.",
        lines.join("\n  ")
    ))
}

/// The modules on top of kvm.ko that go when it goes.
fn vendors(system: &System) -> Vec<String> {
    let engines: Vec<String> = base::engines(system).into_iter().map(|engine| engine.name).collect();
    let ours = |name: &String| ["kvm_amd", "kvm_intel"].contains(&name.as_str()) || engines.contains(name);
    modules::above_kvm(system).into_iter().filter(ours).collect()
}

fn refuse_strangers(system: &System) -> Result<()> {
    let vendors = vendors(system);
    let strangers: Vec<String> =
        modules::above_kvm(system).into_iter().filter(|name| !vendors.contains(name)).collect();
    if strangers.is_empty() {
        return Ok(());
    }
    Err(format!("other modules use kvm.ko: {}; `rmmod` them first. Nothing was changed.", strangers.join(", ")))
}

/// If the change failed half way, who had been loaded beside `kvm_amd` could not be told any more.
fn refuse_several_engines(system: &System) -> Result<()> {
    let engines: Vec<String> = base::engines(system).into_iter().map(|engine| engine.name).collect();
    if engines.len() < 2 {
        return Ok(());
    }
    Err(format!("several engines are loaded: {}; `rmmod` all but one first. Nothing was changed.", engines.join(", ")))
}

fn write(system: &System, pair: Pair, place: &str) -> Result<()> {
    let mut text = format!(
        "# Written by `hsavectl use {pair}`: which kvm.ko and kvm-amd.ko modprobe loads.\n# `depmod -a` makes a change known.\n"
    );
    for module in MODULES {
        text += &format!("override {module} * {place}\n");
    }
    system.replace(CHOICE, &text)
}

/// Makes the choice known for every kernel.
fn index(system: &System, say: &mut dyn FnMut(&str)) -> Result<()> {
    for kernel in modules::kernels(system) {
        say(&format!("depmod for {kernel}"));
        system.must("depmod", &["-a", &kernel])?;
    }
    Ok(())
}

/// depmod has understood.
fn demand(system: &System, pair: Pair, release: &str) -> Result<()> {
    if modules::chosen(system, release) == Some(pair) {
        return Ok(());
    }
    let file = modules::chosen_file(system, release, "kvm").unwrap_or_else(|| "nothing".to_owned());
    Err(format!("modprobe would load {file} for {release} all the same: does another file in /etc/depmod.d name kvm?"))
}

/// Takes out what is there and loads what was chosen.
fn load(system: &System, pair: Pair, before: Option<Pair>, say: &mut dyn FnMut(&str)) -> Result<()> {
    if before.is_some() {
        say("taking the loaded modules out");
        unload(system)?;
    }
    say(&format!("loading {pair}"));
    system.must("modprobe", &["kvm_amd"]).map_err(|why| explain(system, why))?;
    if modules::loaded(system) != Some(pair) {
        return Err("modprobe loaded another pair: does a file in /etc/modprobe.d name kvm?".to_owned());
    }
    if !system.exists("/dev/kvm") {
        return Err(explain(system, "the modules are loaded, and there is no /dev/kvm".to_owned()));
    }
    Ok(())
}

fn unload(system: &System) -> Result<()> {
    for module in vendors(system).iter().map(String::as_str).chain(["kvm"]) {
        let Err(why) = system.must("rmmod", &[module]) else { continue };
        let lines: Vec<String> = processes::holders(system).iter().map(Holder::line).collect();
        let who = if lines.is_empty() { "nobody that shows in /proc".to_owned() } else { lines.join("; ") };
        return Err(format!("{why}; it is held by {who}"));
    }
    Ok(())
}

/// With the kernel's last words, and what to do about the usual causes.
fn explain(system: &System, why: String) -> String {
    let mut text = why;
    let hint = [
        (
            "Key was rejected",
            "secure boot is on and the firmware does not know dkms' key: `mokutil --import /var/lib/dkms/mok.pub`, \
             restart, and enrol it (see /usr/share/doc/hsave-dkms/README.Debian)",
        ),
        ("Required key not available", "the kernel is locked down: the modules have to be signed, see README.Debian"),
        ("Invalid module format", "the modules are of another kernel: `dkms build --force hsave` builds them anew"),
        ("Unknown symbol", "the modules do not fit this kernel: `dkms build --force hsave` builds them anew"),
    ];
    if let Some((_, advice)) = hint.into_iter().find(|(sign, _)| text.contains(sign)) {
        text += &format!("\n{advice}");
    }
    let log = crate::log::about_kvm(system).unwrap_or_default();
    for line in log.iter().rev().take(5).rev() {
        text += &format!("\n  dmesg: {line}");
    }
    text
}

/// Puts back what was; the message says whether that worked.
fn undo(
    system: &System,
    old: Option<&str>,
    before: Option<Pair>,
    switches: bool,
    why: &str,
    say: &mut dyn FnMut(&str),
) -> String {
    say("that failed; putting back what was");
    let choice = match old {
        Some(text) => system.replace(CHOICE, &format!("{text}\n")),
        None => system.remove(CHOICE),
    };
    let back = choice.and_then(|()| index(system, say)).and_then(|()| {
        let gone = switches && before.is_some() && (modules::loaded(system) != before || !system.exists("/dev/kvm"));
        if gone {
            unload_leftovers(system);
            system.must("modprobe", &["kvm_amd"]).map(drop)
        } else {
            Ok(())
        }
    });
    match (back, before) {
        (Ok(()), Some(pair)) => format!("{why}\n{pair} serves as before"),
        (Ok(()), None) => format!("{why}\nnothing is loaded, as before"),
        (Err(error), _) => {
            format!("{why}\nputting back what was failed, too: {error}\n`hsavectl status` says what there is now")
        }
    }
}

/// Whatever a failed attempt left, so that the next modprobe starts from nothing. What cannot go, modprobe will say.
fn unload_leftovers(system: &System) {
    for module in vendors(system).iter().map(String::as_str).chain(["kvm"]) {
        if system.exists(&format!("/sys/module/{module}")) {
            let _ = system.run("rmmod", &[module]);
        }
    }
}

#[cfg(test)]
mod tests;
