//! What the kernel's log says about KVM, without what guests hold.

use crate::system::System;
use std::io;

/// Begins an account of a bug in the kernel.
const BUG: [&str; 4] = ["[ cut here ]", "BUG: ", "Oops: ", "Kernel panic"];

/// As many lines may belong to it.
const LENGTH: usize = 80;

/// Registers at the time of a bug: they may hold what a guest does.
const REGISTERS: [&str; 12] =
    ["RAX:", "RDX:", "RBP:", "R10:", "R13:", "FS:", "CS:", "CR2:", "DR0:", "DR3:", "Code:", "RSP:"];

/// The lines about KVM and hsave, the oldest first. Errors: the log is not for us.
pub fn about_kvm(system: &System) -> io::Result<Vec<String>> {
    Ok(select(&records(&system.kernel_log()?)))
}

/// The lines of a log as `/dev/kmsg` gives it, with the time in seconds in front.
fn records(log: &str) -> Vec<String> {
    // "priority,number,microseconds,flags;text"; lines that begin with a space name a device.
    let record = |line: &str| {
        let (head, text) = line.split_once(';')?;
        let time: u64 = head.split(',').nth(2)?.parse().ok()?;
        Some(format!("[{:5}.{:06}] {text}", time / 1_000_000, time % 1_000_000))
    };
    log.lines().filter(|line| !line.starts_with(' ')).filter_map(record).collect()
}

fn message(line: &str) -> &str {
    line.split_once("] ").map_or(line, |(_, message)| message)
}

fn is_about_kvm(line: &str) -> bool {
    let line = line.to_ascii_lowercase();
    ["kvm", "hsave", "svm"].iter().any(|word| line.contains(word))
}

fn select(lines: &[String]) -> Vec<String> {
    let mut selected = Vec::new();
    let mut left_out = 0;
    let mut bug_ends = 0;
    for (at, line) in lines.iter().enumerate() {
        if at >= bug_ends && BUG.iter().any(|mark| line.contains(mark)) {
            let all = lines.get(at..).unwrap_or_default();
            let length = all.iter().take(LENGTH).position(|line| line.contains("[ end ")).map_or(LENGTH, |end| end + 1);
            if all.iter().take(length).any(|line| is_about_kvm(line)) {
                bug_ends = at + length;
            }
        }
        if at >= bug_ends && !is_about_kvm(line) {
            continue;
        }
        if is_register(message(line)) {
            left_out += 1;
        } else {
            selected.push(without_values(line));
        }
    }
    if left_out > 0 {
        selected.push(format!("({left_out} lines with registers are left out)"));
    }
    selected
}

/// A line of a VMCB that was dumped, or of an oops.
fn is_register(message: &str) -> bool {
    let last = message.split_whitespace().next_back().unwrap_or_default();
    let is_value = last.len() == 16 && last.bytes().all(|byte| byte.is_ascii_hexdigit());
    message.starts_with("kvm") && is_value || REGISTERS.iter().any(|name| message.starts_with(name))
}

/// A guest's addresses and values are cut out of lines that name them in stock's words, or as the record of last exits does; wherever
/// the words are, since a process may be called like them.
pub fn without_values(line: &str) -> String {
    let mut text = line.to_owned();
    for mark in ["guest rIP: 0x", " data 0x", ") = 0x", "guest frame: 0x", " info2 0x", " rip 0x"] {
        let mut parts = text.split(mark);
        let mut cut = parts.next().unwrap_or_default().to_owned();
        for rest in parts {
            cut += mark;
            cut += "...";
            cut += rest.trim_start_matches(|c: char| c.is_ascii_hexdigit());
        }
        text = cut;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(log: &str) -> Vec<String> {
        select(&records(log))
    }

    #[test]
    fn lines_about_kvm_without_values_of_guests() {
        let log = "6,1,1500000,-;usb 1-1: new device\n SUBSYSTEM=usb\n6,2,2000000,-;kvm: hsave: here\n\
                   3,3,3000001,-;kvm: rip:                ffffffff81000000\n\
                   3,4,4000000,-;kvm [12]: vcpu0, guest rIP: 0xffffffff8100 Unhandled WRMSR(0xc0010015) = 0x1234\n";
        assert_eq!(
            chosen(log),
            [
                "[    2.000000] kvm: hsave: here",
                "[    4.000000] kvm [12]: vcpu0, guest rIP: 0x... Unhandled WRMSR(0xc0010015) = 0x...",
                "(1 lines with registers are left out)",
            ]
        );
    }

    #[test]
    fn a_bug_is_shown_whole_if_kvm_is_in_it() {
        let bug = |module: &str| {
            format!(
                "4,1,1,-;------------[ cut here ]------------\n4,2,2,-;WARNING: CPU: 0\n4,3,3,-;RAX: 0000 RBX: 1111\n\
                 4,4,4,-; f+0x1/0x2 [{module}]\n4,5,5,-;---[ end trace 0 ]---\n4,6,6,-;other\n"
            )
        };
        assert_eq!(chosen(&bug("kvm")).len(), 5, "four lines and a count");
        assert!(chosen(&bug("ext4")).is_empty());
    }
}
