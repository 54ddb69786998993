//! Values that memory safety hangs on, and that can be made from a number, are made in few places (ARCHITECTURE.md).

use super::{Findings, Source};

/// How one is made, and where that may be.
const MAKERS: &[(&str, &[&str])] = &[
    ("Pfn::from_host(", &["linux/src/", "sim/src/"]),
    ("TablePage::from_host(", &["linux/src/", "sim/src/", "mmu/src/npt/stale.rs"]),
    ("of_number(", &["linux/src/", "sim/src/", "host/src/lend.rs"]),
    ("Lent::new(", &["vm/src/handover/mod.rs"]),
    ("Tree::lent(", &["mmu/src/lib.rs"]),
    ("NestedRoot::new(", &["mmu/src/npt/mod.rs"]),
];

pub fn check(source: &Source) -> Findings {
    if source.path.contains("/tests/") || source.folder() == "xtask" {
        return Findings::new();
    }
    let mut findings = Findings::new();
    for (maker, places) in MAKERS {
        let elsewhere = !places.iter().any(|place| source.path.starts_with(place));
        let lines = (1..).zip(source.text.lines()).filter(|(_, line)| elsewhere && line.contains(maker));
        findings.extend(lines.map(|(n, _)| format!("{}:{n}: `{maker}` outside {}", source.path, places.join(", "))));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_tables_come_from_the_host() {
        let findings = |path: &str, text: &str| check(&Source { path: path.to_owned(), text: text.to_owned() }).len();
        let (frame, table) = ("let x = Pfn::from_host(HostPa(y));\n", "free(TablePage::from_host(pa));\n");
        assert_eq!((findings("mmu/src/fault.rs", frame), findings("mmu/src/npt/mod.rs", frame)), (1, 1));
        assert_eq!((findings("linux/src/page.rs", frame), findings("mmu/src/tests/fake.rs", frame)), (0, 0));
        assert_eq!((findings("mmu/src/npt/stale.rs", table), findings("mmu/src/cache.rs", table)), (0, 1));
    }
}
