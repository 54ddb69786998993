//! `hsavectl status`, `engines` and `vms`: what there is, as text or as JSON.

use crate::{
    base::{self, duration},
    json::Json,
    modules::{self, Pair},
    processes::{self, Holder},
    system::{Result, System},
};

/// Which pair serves, which will, and who uses it.
pub fn status(system: &System) -> Result<Json> {
    let release = system.release()?;
    let loaded = modules::loaded(system);
    let kernels = modules::kernels(system).into_iter().map(|kernel| {
        Json::object([
            ("hsave", modules::place(system, Pair::Hsave, &kernel).is_some().into()),
            ("next", modules::chosen(system, &kernel).map(|pair| pair.to_string()).into()),
            ("running", (kernel == release).into()),
            ("release", kernel.into()),
        ])
    });
    let place = loaded.and_then(|pair| modules::place(system, pair, &release));
    Ok(Json::object([
        ("serving", loaded.filter(|_| system.exists("/dev/kvm")).map(|pair| pair.to_string()).into()),
        ("loaded", loaded.map(|pair| pair.to_string()).into()),
        ("version", version(system).into()),
        ("same_as_on_disk", place.and_then(|place| modules::is_what_is_on_disk(system, &release, place)).into()),
        ("next_boot", modules::chosen(system, &release).map(|pair| pair.to_string()).into()),
        ("kernel", release.clone().into()),
        ("processor", modules::processor_fits(system).err().into()),
        ("engine", base::current(system).into()),
        ("kernels", Json::List(kernels.collect())),
        ("users", Json::list(processes::holders(system))),
        ("all_users_seen", processes::all_are_seen(system).into()),
    ]))
}

/// hsave's version, as the base or the module says it.
pub fn version(system: &System) -> Option<String> {
    system.text(&format!("{}/version", base::BASE)).or_else(|| system.text("/sys/module/kvm_amd/version"))
}

/// The same for a person.
pub fn status_text(system: &System) -> Result<String> {
    let release = system.release()?;
    let loaded = modules::loaded(system);
    let mut rows = Vec::new();
    let mut notes = Vec::new();
    let serving = match (loaded, system.exists("/dev/kvm")) {
        (None, _) => "nothing: no kvm.ko is loaded (`modprobe kvm_amd` loads the pair of the next boot)".to_owned(),
        (Some(pair), false) => {
            format!("nothing: {pair}'s kvm.ko is loaded, and no module of the vendor's on top of it")
        }
        (Some(pair), true) => {
            let version = version(system).filter(|_| pair == Pair::Hsave);
            format!("{pair}{}", version.map(|version| format!(" {version}")).unwrap_or_default())
        }
    };
    rows.push(("/dev/kvm is served by", serving));
    let next = modules::chosen(system, &release);
    let file = modules::chosen_file(system, &release, "kvm").unwrap_or_else(|| "none".to_owned());
    let next = next.map_or_else(|| format!("no pair that fits ({file})"), |pair| format!("{pair} ({file})"));
    rows.push(("the next boot loads", next));
    rows.push(("kernel", release.clone()));
    let fits = modules::processor_fits(system);
    rows.push(("processor", fits.map_or_else(|why| why, |()| "has SVM and nested paging".to_owned())));
    let (built, not): (Vec<String>, Vec<String>) =
        modules::kernels(system).into_iter().partition(|kernel| modules::place(system, Pair::Hsave, kernel).is_some());
    let or_none = |list: Vec<String>| if list.is_empty() { "none".to_owned() } else { list.join(", ") };
    rows.push(("hsave is built for", or_none(built)));
    if !not.is_empty() {
        rows.push(("and not for", not.join(", ")));
    }
    if base::is_there(system) {
        rows.push(("engine for new VMs", base::current(system).unwrap_or_else(|| "none".to_owned())));
    }
    let holders = processes::holders(system);
    rows.push(("VMs", holders.iter().map(|holder| holder.vms).sum::<u32>().to_string()));
    let place = loaded.and_then(|pair| modules::place(system, pair, &release));
    if loaded == Some(Pair::Hsave)
        && place.and_then(|place| modules::is_what_is_on_disk(system, &release, place)) == Some(false)
    {
        notes.push("the modules on disk are others than those in memory: `hsavectl use hsave` loads them");
    }
    if !processes::all_are_seen(system) {
        notes.push("processes of others do not show: run this as root");
    }
    let mut text = rows.iter().map(|(name, value)| format!("{name:<22} {value}\n")).collect::<String>();
    for holder in &holders {
        text += &format!("  {}\n", holder.line());
    }
    for note in notes {
        text += &format!("note: {note}\n");
    }
    Ok(text)
}

impl From<Holder> for Json {
    fn from(holder: Holder) -> Self {
        let Holder { pid, name, vms, vcpus } = holder;
        Self::object([("pid", pid.into()), ("name", name.into()), ("vms", vms.into()), ("vcpus", vcpus.into())])
    }
}

/// The base with engines is there, or what to do.
pub fn demand_base(system: &System) -> Result<()> {
    if base::is_there(system) {
        return Ok(());
    }
    Err(match modules::loaded(system) {
        Some(Pair::Hsave) => {
            format!("the hsave modules in memory have no engines to choose from ({} is not there)", base::BASE)
        }
        Some(Pair::Stock) => "stock KVM is loaded: `hsavectl use hsave` changes that".to_owned(),
        None => "hsave is not loaded: `hsavectl use hsave` does that".to_owned(),
    })
}

pub fn engines_text(system: &System) -> String {
    let mut rows = vec![["ENGINE", "VERSION", "INTERFACE", "VMS", ""].map(str::to_owned)];
    for engine in base::engines(system) {
        let mark = if engine.current { "new VMs go here" } else { "" };
        rows.push([engine.name, engine.version, engine.interface, engine.vms.to_string(), mark.to_owned()]);
    }
    table(&rows)
}

/// Makes an engine the one that new VMs are given to.
pub fn set_current(system: &System, name: &str) -> Result<()> {
    system.write(&format!("{}/current", base::BASE), name).map_err(|error| match error.raw_os_error() {
        Some(2) => no_such_engine(system, name),
        _ => format!("cannot make {name} the engine for new VMs: {error}"),
    })
}

pub fn no_such_engine(system: &System, name: &str) -> String {
    let known: Vec<String> = base::engines(system).into_iter().map(|engine| engine.name).collect();
    format!("there is no engine {name}; loaded are: {}. `modprobe` or `insmod` loads another.", known.join(", "))
}

/// VMs by the base, or where there is none by what processes have open.
pub fn vms_text(system: &System) -> String {
    if !base::is_there(system) {
        let holders = processes::holders(system);
        let rows = holders
            .into_iter()
            .map(|holder| [holder.pid.to_string(), holder.name, holder.vms.to_string(), holder.vcpus.to_string()]);
        let head = ["PID", "NAME", "VMS", "VCPUS"].map(str::to_owned);
        return table(&std::iter::once(head).chain(rows).collect::<Vec<_>>());
    }
    let mut rows =
        vec![["VM", "PID", "NAME", "VCPUS", "ENGINE", "UPGRADES", "LAST PAUSE", "LAST ERROR"].map(str::to_owned)];
    for vm in base::vms(system) {
        let pause = if vm.pause_ns == 0 { "-".to_owned() } else { duration(vm.pause_ns) };
        let (pid, vcpus, upgrades) = (vm.pid.to_string(), vm.vcpus.to_string(), vm.upgrades.to_string());
        rows.push([vm.id, pid, vm.name, vcpus, vm.engine, upgrades, pause, vm.error]);
    }
    table(&rows)
}

pub fn vms(system: &System) -> Json {
    if base::is_there(system) { Json::list(base::vms(system)) } else { Json::list(processes::holders(system)) }
}

/// Columns as wide as what is in them.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..N).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    #[test]
    fn a_bare_machine_and_one_with_engines() {
        let fake = Fake::new();
        let text = status_text(&fake.system()).unwrap();
        assert!(text.starts_with("/dev/kvm is served by  nothing: no kvm.ko is loaded"), "{text}");
        assert!(demand_base(&fake.system()).unwrap_err().contains("hsavectl use hsave"));
        fake.dir("sys/module/kvm");
        fake.file("dev/kvm", "");
        fake.engine("kvm_amd", "0.1.0");
        fake.file("sys/kernel/hsave/version", "0.1.0\n");
        fake.file("sys/kernel/hsave/current", "kvm_amd\n");
        fake.vm("42-13", "qemu", "kvm_amd");
        let text = status_text(&fake.system()).unwrap();
        assert!(text.starts_with("/dev/kvm is served by  hsave 0.1.0\n"), "{text}");
        assert!(text.contains("engine for new VMs     kvm_amd\n"), "{text}");
        assert!(engines_text(&fake.system()).contains("kvm_amd  0.1.0    1          0    new VMs go here\n"));
        let text = vms_text(&fake.system());
        assert!(text.contains("42-13  42   qemu  2      kvm_amd  0         -\n"), "{text}");
        assert!(vms(&fake.system()).text().contains("\"id\": \"42-13\""));
        assert!(status(&fake.system()).unwrap().text().contains("\"serving\": \"hsave\""));
        set_current(&fake.system(), "kvm_amd").unwrap();
    }

    #[test]
    fn without_a_base_vms_are_what_processes_have_open() {
        let fake = Fake::new();
        fake.process(7, "vmm", &["anon_inode:kvm-vm", "anon_inode:kvm-vcpu:0", "anon_inode:kvm-vcpu:1"]);
        assert_eq!(vms_text(&fake.system()), "PID  NAME  VMS  VCPUS\n7    vmm   1    2\n");
        assert!(vms(&fake.system()).text().contains("\"vcpus\": 2"));
    }
}
