//! What hsave shows of itself in `/sys/kernel/hsave`: the base, engines, and VMs. Modules from before it was there have none.

use crate::{json::Json, system::System};

/// Where.
pub const BASE: &str = "/sys/kernel/hsave";

/// An engine that is loaded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Engine {
    /// Its module's name.
    pub name: String,
    pub version: String,
    /// Version of the table between base and engine.
    pub interface: String,
    /// How many VMs it serves.
    pub vms: u64,
    /// New VMs are given to it.
    pub current: bool,
}

/// A VM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vm {
    /// As in debugfs: the thread that made it, and its descriptor.
    pub id: String,
    pub pid: u64,
    /// The process's name.
    pub name: String,
    pub engine: String,
    pub vcpus: u64,
    /// How often it was handed over.
    pub upgrades: u64,
    /// How long it stood still the last time, in nanoseconds; 0 if it never was.
    pub pause_ns: u64,
    /// Why the last attempt failed; empty if it did not.
    pub error: String,
}

/// Whether modules are loaded that have all this.
pub fn is_there(system: &System) -> bool {
    system.exists(BASE)
}

/// The engine that new VMs are given to.
pub fn current(system: &System) -> Option<String> {
    system.text(&format!("{BASE}/current")).filter(|name| !name.is_empty())
}

pub fn engines(system: &System) -> Vec<Engine> {
    let current = current(system).unwrap_or_default();
    let engine = |name: String| {
        let file = |file: &str| system.text(&format!("{BASE}/engines/{name}/{file}"));
        Engine {
            version: file("version").unwrap_or_default(),
            interface: file("interface").unwrap_or_default(),
            vms: file("vms").and_then(|text| text.parse().ok()).unwrap_or(0),
            current: name == current,
            name,
        }
    };
    system.names(&format!("{BASE}/engines")).into_iter().map(engine).collect()
}

pub fn vms(system: &System) -> Vec<Vm> {
    system.names(&format!("{BASE}/vms")).into_iter().filter_map(|id| vm(system, id)).collect()
}

/// None if it has gone meanwhile.
pub fn vm(system: &System, id: String) -> Option<Vm> {
    let text = |file: &str| system.text(&format!("{BASE}/vms/{id}/{file}"));
    let number = |file: &str| text(file).and_then(|text| text.parse().ok());
    Some(Vm {
        pid: number("pid")?,
        name: system.name(&format!("{BASE}/vms/{id}/name")).unwrap_or_default(),
        engine: text("engine")?,
        vcpus: number("vcpus").unwrap_or(0),
        upgrades: number("upgrades").unwrap_or(0),
        pause_ns: number("pause_ns").unwrap_or(0),
        error: text("error").unwrap_or_default(),
        id,
    })
}

impl From<Engine> for Json {
    fn from(engine: Engine) -> Self {
        let Engine { name, version, interface, vms, current } = engine;
        Self::object([
            ("name", name.into()),
            ("version", version.into()),
            ("interface", interface.into()),
            ("vms", vms.into()),
            ("current", current.into()),
        ])
    }
}

impl From<Vm> for Json {
    fn from(vm: Vm) -> Self {
        let Vm { id, pid, name, engine, vcpus, upgrades, pause_ns, error } = vm;
        Self::object([
            ("id", id.into()),
            ("pid", pid.into()),
            ("name", name.into()),
            ("engine", engine.into()),
            ("vcpus", vcpus.into()),
            ("upgrades", upgrades.into()),
            ("pause_ns", pause_ns.into()),
            ("error", error.into()),
        ])
    }
}

/// Nanoseconds as a person reads them.
pub fn duration(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.1} µs", ns as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        _ => format!("{:.2} s", ns as f64 / 1e9),
    }
}
