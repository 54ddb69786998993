//! `docs/world-switch.md` shows the whole text in order, so that it cannot go stale.

use std::vec::Vec;

/// Lines that are not empty; comments are the document's prose.
fn code<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let bare = lines.map(|line| line.split('#').next().unwrap_or("").trim());
    bare.filter(|line| !line.is_empty()).collect()
}

#[test]
fn the_document_shows_the_text_as_it_is() {
    let document = include_str!("../../../docs/world-switch.md");
    let mut inside = false;
    let shown = code(document.lines().filter(|line| {
        let fence = line.starts_with("```");
        if fence {
            inside = *line == "```asm";
        }
        inside && !fence
    }));
    let text = code(include_str!("../entry.s").lines());
    for (n, (shown, text)) in shown.iter().zip(&text).enumerate() {
        assert_eq!(shown, text, "line {n} of the code in docs/world-switch.md is not that of switch/src/entry.s");
    }
    assert_eq!(shown.len(), text.len(), "docs/world-switch.md ends early or goes on");
}
