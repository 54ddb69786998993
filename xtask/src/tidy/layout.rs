//! Hardware and ABI layouts carry an offset assertion for every field (invariant 7): from arch's
//! declaring macro, which this does not see into, or spelled out in the same file.

use super::{Findings, Source, is_test};
use syn::{spanned::Spanned, visit::Visit};

struct Visitor<'a> {
    source: &'a Source,
    /// The file without white space.
    dense: String,
    findings: Findings,
}

/// Where layouts are shared with hardware, user space or C. The assembly in `switch` takes its offsets
/// from the compiler instead.
const SHARED: &[&str] = &["arch", "vm", "abi", "linux"];

pub fn check(source: &Source, file: &syn::File) -> Findings {
    if !SHARED.contains(&source.folder()) || source.path.contains("/tests/") {
        return Findings::new();
    }
    let dense = source.text.chars().filter(|c| !c.is_whitespace()).collect();
    let mut visitor = Visitor { source, dense, findings: Findings::new() };
    visitor.visit_file(file);
    visitor.findings
}

fn is_repr_c(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        syn::Meta::List(list) if list.path.is_ident("repr") => {
            list.tokens.to_string().split(|c: char| !c.is_alphanumeric()).any(|word| word == "C")
        }
        _ => false,
    })
}

impl<'ast> Visit<'ast> for Visitor<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_test(&item.attrs) {
            syn::visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        if !is_repr_c(&item.attrs) {
            return;
        }
        for field in &item.fields {
            let Some(name) = &field.ident else { continue };
            let assertion = format!("offset_of!({},{name})", item.ident);
            if !self.dense.contains(&assertion) {
                let line = field.span().start().line;
                self.findings.push(format!("{}:{line}: no {assertion} asserts this field", self.source.path));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_demanded() {
        let text = "#[repr(C)]\nstruct A { a: u8, b: u8 }\nconst _: () = assert!(offset_of!(A, a) == 0);\n";
        let source = Source { path: "abi/src/a.rs".into(), text: text.into() };
        assert_eq!(check(&source, &source.parse().unwrap()).len(), 1);
    }
}
