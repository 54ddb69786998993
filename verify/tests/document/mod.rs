//! `docs/world-switch.md` against what the checker finds in the assembly.

use super::{encrypted::pieces, findings, object, text, text_with};
use verify::{ENCRYPTED_MARKS, MARKS, block, check, with_block};

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/world-switch.md");

/// What is found in the SEV-ES variant.
fn encrypted(text: &str) -> String {
    check(&object(text, &pieces())).expect("a world switch").encrypted_document.trim_matches('\n').to_owned()
}

#[test]
fn the_document_shows_what_was_found() {
    let page = std::fs::read_to_string(PATH).unwrap();
    let found = |text: &str| findings(text).document.trim_matches('\n').to_owned();
    let good = text();
    let shown = block(&page, MARKS).expect("the block");
    assert!(shown == found(&good), "./x verify MODULE.ko --document writes it");
    assert!(with_block(&page, MARKS, &found(&good)).as_ref() == Some(&page));
    for (from, to) in
        [("    push rdi\n", "    push rdi\n    nop\n"), ("    hsave_extable .Lhsave_run, .Lhsave_run_fault\n", "")]
    {
        assert!(shown != found(&good.replacen(from, to, 1)), "{from:?}");
    }
}

#[test]
fn the_document_shows_what_was_found_for_sev_es() {
    let mut page = std::fs::read_to_string(PATH).unwrap();
    let good = text_with(1);
    let found = encrypted(&good);
    if std::env::var_os("WRITE_DOCUMENT").is_some() {
        page = with_block(&page, ENCRYPTED_MARKS, &found).expect("a place for it");
        std::fs::write(PATH, &page).unwrap();
    }
    let shown = block(&page, ENCRYPTED_MARKS).expect("the block");
    assert!(shown == found, "WRITE_DOCUMENT=1 cargo test -p verify document writes it");
    let changed = good.replacen("hsave_es_vcpu_run:\n    endbr64\n", "hsave_es_vcpu_run:\n    endbr64\n    nop\n", 1);
    assert!(shown != encrypted(&changed));
}
