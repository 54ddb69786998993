//! Links in Markdown lead to files and headings that are there. Those to other machines are not followed.

use super::{Findings, Source};
use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

/// Texts that pages are made of, which lie elsewhere.
const TEMPLATES: &str = "xtask/scripts/";

/// All links of all pages.
pub fn check(root: &Path, sources: &[Source]) -> Findings {
    let pages: BTreeMap<&str, &Source> = sources
        .iter()
        .filter(|source| source.extension() == "md")
        .map(|source| (source.path.as_str(), source))
        .collect();
    let mut findings = Findings::new();
    for (path, page) in pages.iter().filter(|(path, _)| !path.starts_with(TEMPLATES)) {
        for (number, target) in links(&page.text) {
            if let Some(wrong) = wrong(root, path, target, &pages) {
                findings.push(format!("{path}:{number}: {wrong}"));
            }
        }
    }
    findings
}

/// Lines outside of code blocks, with their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    (1..).zip(text.lines()).filter(move |(_, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fence && !fenced && !line.starts_with("    ")
    })
}

/// What stands in the parentheses of `[text](target)`, and the number of the line.
fn links(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        // Between backticks nothing is a link.
        for part in line.split('`').step_by(2) {
            for (at, _) in part.match_indices("](") {
                let rest = part.get(at + 2..).unwrap_or_default();
                found.extend(rest.split_once(')').map(|(target, _)| (number, target)));
            }
        }
    }
    found
}

fn wrong(root: &Path, page: &str, target: &str, pages: &BTreeMap<&str, &Source>) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, heading) = target.split_once('#').map_or((target, None), |(file, heading)| (file, Some(heading)));
    let path = if file.is_empty() { PathBuf::from(page) } else { joined(Path::new(page), file)? };
    if !path.to_str().is_some_and(|path| pages.contains_key(path)) && !root.join(&path).exists() {
        return Some(format!("there is no {}", path.display()));
    }
    let heading = heading?;
    let text = &pages.get(path.to_str()?)?.text;
    let known = prose(text).filter(|(_, line)| line.starts_with('#')).any(|(_, line)| anchor(line) == heading);
    (!known).then(|| format!("{} has no heading #{heading}", path.display()))
}

/// A path as it is meant on that page.
fn joined(page: &Path, file: &str) -> Option<PathBuf> {
    let mut path = page.parent()?.to_owned();
    for part in Path::new(file).components() {
        match part {
            Component::ParentDir => {
                path.pop();
            }
            Component::Normal(name) => path.push(name),
            _ => {}
        }
    }
    Some(path)
}

/// What a heading is called in a link: small letters, and hyphens for spaces.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars()
        .filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_lead_nowhere_are_found() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let page = |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() };
        let pages = [
            page(
                "src/a.md",
                "# Top of it!\n[x](main.rs) [y](../Cargo.toml) [z](#top-of-it) [w](b.md#there) [v](https://x.y/z)\n\
                 [1](none.rs) `[not](a-link)` [2](b.md#not-there) [3](#nor-this)\n    [code](none)\n```\n[code](none)\n```\n",
            ),
            page("src/b.md", "## There\n"),
        ];
        assert_eq!(
            check(root, &pages),
            [
                "src/a.md:3: there is no src/none.rs",
                "src/a.md:3: src/b.md has no heading #not-there",
                "src/a.md:3: src/a.md has no heading #nor-this"
            ]
        );
    }
}
