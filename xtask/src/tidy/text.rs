//! Rules about files as text: what each begins with, how long it may be, words that stay out.

use super::{Findings, Source};

/// Files longer than this say why.
const LONG: usize = 400;

/// ARCHITECTURE.md is a map, not a book.
const MOST_WORDS: usize = 2300;

/// Paths of somebody's machine, and registries by name: these come from the machine's own settings.
const WORDS: &[&str] = &[
    concat!("/work", "/"),
    concat!("/home", "/"),
    concat!("deb.", "debian.org"),
    concat!("security.", "debian.org"),
    concat!("snapshot.", "debian.org"),
    concat!("index.", "crates.io"),
    concat!("static.", "crates.io"),
    concat!("static.", "rust-lang.org"),
];

pub fn check(source: &Source) -> Findings {
    let mut findings = Findings::new();
    let path = &source.path;
    for (number, line) in source.text.lines().enumerate() {
        if let Some(word) = WORDS.iter().find(|word| line.contains(**word)) {
            findings.push(format!("{path}:{}: {word:?} must not be here", number + 1));
        }
    }
    let code = ["rs", "c", "h", "S", "sh"].contains(&source.extension());
    let length = source.text.lines().count();
    if code && length > LONG && !source.text.contains("Long because:") {
        findings.push(format!("{path}:{length}: longer than {LONG} lines without a `Long because:` in its head"));
    }
    if !begins_with_comment(source) {
        findings.push(format!("{path}:1: does not begin by saying what it is"));
    }
    findings
}

/// `//!` in Rust; in C, assembly and shell a comment beside the licence line or the interpreter.
fn begins_with_comment(source: &Source) -> bool {
    let mut lines = source.text.lines().map(str::trim).filter(|line| !line.is_empty());
    let said = |line: &str, mark: &str| line.starts_with(mark) && line.len() > mark.len() + 8;
    match source.extension() {
        "rs" => lines.next().is_some_and(|line| line.starts_with("//!")),
        "c" | "h" | "S" => {
            let head = lines.filter(|line| !line.contains("SPDX-License-Identifier")).take(2);
            head.take_while(|line| ["//", "/*", "*"].iter().any(|mark| line.starts_with(mark)))
                .any(|line| line.len() > 10)
        }
        "sh" => lines.find(|line| !line.starts_with("#!")).is_some_and(|line| said(line, "#")),
        _ => true,
    }
}

/// The map exists and stays short.
pub fn architecture(sources: &[Source]) -> Findings {
    let Some(map) = sources.iter().find(|source| source.path == "ARCHITECTURE.md") else {
        return vec!["ARCHITECTURE.md: missing".to_owned()];
    };
    let words = map.text.split_whitespace().count();
    if words > MOST_WORDS {
        return vec![format!("ARCHITECTURE.md: {words} words, at most {MOST_WORDS}")];
    }
    Findings::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.into(), text: text.into() }
    }

    #[test]
    fn heads_lengths_and_words() {
        assert!(check(&source("a/b.rs", "//! Says.\n")).is_empty());
        assert_eq!(check(&source("a/b.rs", "fn f() {}\n")).len(), 1);
        assert!(check(&source("a/b.c", "// SPDX-License-Identifier: GPL-2.0\n/*\n * What it is.\n */\n")).is_empty());
        assert_eq!(check(&source("a/b.c", "// SPDX-License-Identifier: GPL-2.0\n#include <a>\n")).len(), 1);
        let long = "//! Says.\n".to_owned() + &"//\n".repeat(LONG);
        assert_eq!(check(&source("a/b.rs", &long)).len(), 1);
        assert_eq!(check(&source("a.md", concat!("see /work", "/x\n"))).len(), 1);
    }
}
