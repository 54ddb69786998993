//! The emulator's log of executed instructions, counted: per function, per costly kind of instruction, and those that only
//! find out how long the guest's instruction is.

use anyhow::Result;
use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{BufRead, BufReader},
    ops::RangeFrom,
    path::Path,
};

/// The upper half of the address space is the kernel's.
const KERNEL: RangeFrom<u64> = 0x8000_0000_0000_0000..;
/// Instructions that cost far more than others, by the beginning of their mnemonic.
const COSTLY: &[(&str, &str)] = &[
    ("VMRUN", "vmrun"),
    ("VMLOAD", "vmload"),
    ("VMSAVE", "vmsave"),
    ("CLGI", "clgi"),
    ("STGI", "stgi"),
    ("RDMSR", "rdmsr"),
    ("WRMSR", "wrmsr"),
    ("XSETBV", "xsetbv"),
    ("XSAVE", "xsave"),
    ("XRSTOR", "xrstor"),
    ("INVLPGA", "invlpga"),
    ("INVLPG", "invlpg"),
    ("INVPCID", "invpcid"),
    ("VERW", "verw"),
    ("CPUID", "cpuid"),
    ("LOCK", "lock "),
];

/// Stands among the addresses for a TLB flush that VMRUN did (TLB_CONTROL), which only the strict processor logs; no instruction can
/// be there.
const FLUSH: u64 = 0x8000_0000_0000_0000;

/// Linux's functions that have the local APIC send an interrupt: none calls another one.
const SENDS_IPI: &[&str] = &[
    "__default_send_IPI_dest_field",
    "default_send_IPI_single_phys",
    "default_send_IPI_mask_sequence_phys",
    "default_send_IPI_self",
    "__x2apic_send_IPI_dest",
    "x2apic_send_IPI_self",
    "x2apic_send_IPI_all",
    "x2apic_send_IPI_allbutself",
];

/// The instructions of one window, in order.
#[derive(Default)]
pub struct Window {
    pub kind: String,
    pub rounds: u32,
    pub addresses: Vec<u64>,
}

/// What stands at an address, as far as it is costly. Filled when the emulator translates, which it does once.
pub type Costly = HashMap<u64, &'static str>;

/// Functions by address.
pub struct Symbols(BTreeMap<u64, String>);

/// Figures per round.
#[derive(Clone, Default)]
pub struct Counts {
    pub functions: BTreeMap<String, f64>,
    pub costly: BTreeMap<&'static str, f64>,
    /// Instructions that find out how long the guest's instruction is (what a processor with NRIPS says itself).
    pub decoding: f64,
}

impl Window {
    /// Reads a log, and adds to `costly` what was translated.
    pub fn read(log: &Path, costly: &mut Costly) -> Result<Vec<u64>> {
        let mut addresses = Vec::new();
        for line in BufReader::new(File::open(log)?).split(b'\n') {
            let line = line?;
            let Ok(line) = std::str::from_utf8(&line) else { continue };
            if let Some(text) = line.strip_prefix("0x") {
                // ADDRESS:  BYTES  MNEMONIC OPERANDS
                let mut parts = text.splitn(2, ':');
                let address = parts.next().and_then(|address| u64::from_str_radix(address, 16).ok());
                if let (Some(address), Some(name)) = (address, parts.next().and_then(costly_name)) {
                    costly.insert(address, name);
                }
            } else if line.starts_with("Trace ") {
                // Trace CPU: TRANSLATED [CS_BASE/PC/FLAGS/...]
                let pc = line.split_once('[').and_then(|(_, rest)| rest.split('/').nth(1));
                addresses.extend(pc.and_then(|pc| u64::from_str_radix(pc, 16).ok()));
            } else if line.starts_with("TLB flush ") {
                addresses.push(FLUSH);
            }
        }
        Ok(addresses)
    }

    /// From the first entry into the guest to the last: what the measurement itself does lies outside.
    fn between_entries(&self, costly: &Costly) -> &[u64] {
        let enters = |address: &u64| costly.get(address) == Some(&"VMRUN");
        let ends = (self.addresses.iter().position(enters), self.addresses.iter().rposition(enters));
        match ends {
            (Some(first), Some(last)) if first < last => self.addresses.get(first..last).unwrap_or(&[]),
            _ => &self.addresses,
        }
    }

    /// Counts per round.
    pub fn count(&self, symbols: &Symbols, costly: &Costly) -> Counts {
        let (mut counts, one) = (Counts::default(), 1.0 / f64::from(self.rounds));
        // While an instruction's length is looked for: who asked.
        let mut asked: Option<&str> = None;
        let mut before = "";
        for address in self.between_entries(costly) {
            if *address == FLUSH {
                *counts.costly.entry("TLB flush by VMRUN").or_default() += one;
                continue;
            }
            let name = symbols.name(*address);
            *counts.functions.entry(name.to_owned()).or_default() += one;
            if let Some(kind) = costly.get(address).filter(|_| KERNEL.contains(address)) {
                *counts.costly.entry(kind).or_default() += one;
            }
            if symbols.begins(*address).is_some_and(|name| SENDS_IPI.contains(&name)) {
                *counts.costly.entry("IPI").or_default() += one;
            }
            match asked {
                Some(caller) if caller == name => asked = None,
                None if name != before && looks_for_length(before, name) => asked = Some(before),
                _ => {}
            }
            counts.decoding += if asked.is_some() { one } else { 0.0 };
            before = name;
        }
        counts
    }
}

fn costly_name(text: &str) -> Option<&'static str> {
    let text = text.trim_start();
    // The bytes are pairs of hexadecimal digits, each followed by a space; two spaces or more end them.
    let (_, instruction) = text.split_once("  ")?;
    let instruction = instruction.trim_start();
    if instruction.starts_with("mov") {
        let register = |r: &str| instruction.contains(&format!("%{r}"));
        return [("CR access", "cr"), ("DR access", "db"), ("DR access", "dr")]
            .into_iter()
            .find_map(|(name, r)| register(r).then_some(name));
    }
    COSTLY.iter().find_map(|(name, mnemonic)| instruction.starts_with(mnemonic).then_some(*name))
}

/// Does a call of `callee` from `caller` begin the search for the guest's instruction length?
fn looks_for_length(caller: &str, callee: &str) -> bool {
    let stock = caller.contains("skip_emulated_instruction") && callee.contains("emulate_instruction");
    stock || callee.contains("looked_up_next_rip")
}

impl Symbols {
    /// From lines of /proc/kallsyms, and others that are none.
    pub fn parse(text: &str) -> Self {
        let symbol = |line: &str| {
            let mut words = line.split_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            let name = words.nth(1)?;
            let module = words.next().map(|module| format!(" {module}")).unwrap_or_default();
            Some((address, format!("{:#}{module}", rustc_demangle::demangle(name))))
        };
        Self(text.lines().filter_map(symbol).collect())
    }

    /// The function whose first instruction is there.
    fn begins(&self, address: u64) -> Option<&str> {
        self.0.get(&address).map(String::as_str)
    }

    fn name(&self, address: u64) -> &str {
        match KERNEL.contains(&address) {
            true => self.0.range(..=address).next_back().map_or("?", |(_, name)| name),
            false => "(user space and guest)",
        }
    }
}

impl Counts {
    pub fn total(&self) -> f64 {
        self.functions.values().sum()
    }

    /// The functions, most expensive first.
    pub fn show(&self) {
        let mut rows: Vec<_> = self.functions.iter().filter(|(_, count)| **count >= 0.5).collect();
        rows.sort_by(|a, b| b.1.total_cmp(a.1));
        for (name, count) in rows {
            println!("{count:8.1} {name}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_becomes_figures() {
        let dir = std::env::temp_dir().join(format!("trace-test-{}", std::process::id()));
        let log = "IN: \n0xffffffff81000000:  0f 01 d8                 vmrun    %rax\n\
                   0xffffffff81000003:  0f 22 d8                 movq     %rax, %cr3\n\
                   Trace 0: 0x7f00 [00000000/ffffffff81000000/0/0] \n\
                   TLB flush 3\n\
                   Trace 0: 0x7f00 [00000000/ffffffff81000003/0/0] \n\
                   Trace 0: 0x7f00 [00000000/0000000000401000/0/0] \n";
        std::fs::write(&dir, log).unwrap();
        let mut costly = Costly::new();
        let addresses = Window::read(&dir, &mut costly).unwrap();
        std::fs::remove_file(&dir).unwrap();
        let window = Window { kind: "x".into(), rounds: 2, addresses };
        let counts = window.count(&Symbols::parse("ffffffff81000000 T enter [kvm]\nnoise\n"), &costly);
        assert_eq!(counts.costly, BTreeMap::from([("VMRUN", 0.5), ("TLB flush by VMRUN", 0.5), ("CR access", 0.5)]));
        assert_eq!((counts.total(), counts.functions["enter [kvm]"]), (1.5, 1.0));
    }

    #[test]
    fn what_lies_outside_of_the_guest_is_not_counted() {
        let addresses = [1, 5, 2, 5, 3].map(|n| 0xffff_ffff_8100_0000 + n).to_vec();
        let window = Window { kind: "x".into(), rounds: 1, addresses };
        let costly = Costly::from([(0xffff_ffff_8100_0005, "VMRUN")]);
        assert_eq!(window.count(&Symbols::parse(""), &costly).total(), 2.0);
    }

    #[test]
    fn an_ipi_is_counted_where_its_function_begins() {
        let symbols = Symbols::parse("ffffffff81000000 t default_send_IPI_self\nffffffff81000010 t other");
        let addresses = [0x0, 0x1, 0x2, 0x10].map(|n| 0xffff_ffff_8100_0000 + n).to_vec();
        let window = Window { kind: "x".into(), rounds: 1, addresses };
        assert_eq!(window.count(&symbols, &Costly::new()).costly, BTreeMap::from([("IPI", 1.0)]));
    }

    #[test]
    fn the_search_for_the_length_is_counted_with_all_that_it_calls() {
        let decoding = |names: [&str; 2], addresses: &[u64]| {
            let symbols = Symbols::parse(&format!(
                "ffffffff81000000 t {}\nffffffff81001000 t {}\nffffffff81002000 t other",
                names[0], names[1]
            ));
            let addresses = addresses.iter().map(|n| 0xffff_ffff_8100_0000 + n).collect();
            Window { kind: "x".into(), rounds: 1, addresses }.count(&symbols, &Costly::new()).decoding
        };
        let called = [0x0, 0x1000, 0x2000, 0x1001, 0x1, 0x2000];
        assert_eq!(decoding(["svm_skip_emulated_instruction", "kvm_emulate_instruction"], &called), 3.0);
        assert_eq!(decoding(["cycle", "<vm::Ctx>::looked_up_next_rip"], &called), 3.0);
        assert_eq!(decoding(["cycle", "emulate"], &called), 0.0);
    }
}
