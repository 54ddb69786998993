//! `unsafe` stays where invariant 2 puts it, and each use says what it rests on.

use super::{Findings, Source};
use proc_macro2::Span;
use syn::{spanned::Spanned, visit::Visit};

/// Where `unsafe` may be: the world switch, the kernel glue, the mask of indexes (docs/decisions/0020), the simulator's locks;
/// and outside the module, programs that test `/dev/kvm` from user space and the emulator's run against the processor.
const ALLOWED: &[&str] = &["switch/", "linux/", MASK, "sim/src/lock.rs", "tests/src/", "emulator/tests/"];
/// Its crate denies `unsafe`, which this one file allows.
const MASK: &str = "arch/src/nospec.rs";

fn allowed(path: &str) -> bool {
    ALLOWED.iter().any(|prefix| path.starts_with(prefix))
}

struct Visitor<'a> {
    source: &'a Source,
    lines: Vec<&'a str>,
    findings: Findings,
}

pub fn check(source: &Source, file: &syn::File) -> Findings {
    let mut visitor = Visitor { source, lines: source.text.lines().collect(), findings: Findings::new() };
    visitor.visit_file(file);
    visitor.findings
}

impl Visitor<'_> {
    fn used(&mut self, span: Span, what: &str, documented: bool) {
        let (path, line) = (&self.source.path, span.start().line);
        if !allowed(path) {
            self.findings.push(format!("{path}:{line}: {what} outside switch and linux"));
        } else if !documented && !self.has_safety_comment(line) {
            self.findings.push(format!("{path}:{line}: {what} without a SAFETY comment"));
        }
    }

    /// A comment with `SAFETY:` on the line, or above the statement that the line belongs to.
    fn has_safety_comment(&self, line: usize) -> bool {
        let at = |line: usize| self.lines.get(line.wrapping_sub(1)).map_or("", |text| text.trim());
        if at(line).contains("SAFETY:") || at(line + 1).starts_with("// SAFETY:") {
            return true;
        }
        for above in (1..line).rev().map(at) {
            if above.starts_with("//") {
                if above.contains("SAFETY:") {
                    return true;
                }
            } else if above.is_empty() || above.ends_with([';', '{', '}', ',']) {
                return false;
            }
        }
        false
    }
}

/// A `# Safety` section in the documentation.
fn has_safety_doc(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        syn::Meta::NameValue(pair) => pair.path.is_ident("doc") && source_of(&pair.value).contains("# Safety"),
        _ => false,
    })
}

fn source_of(value: &syn::Expr) -> String {
    match value {
        syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) => text.value(),
        _ => String::new(),
    }
}

impl<'ast> Visit<'ast> for Visitor<'_> {
    fn visit_expr_unsafe(&mut self, node: &'ast syn::ExprUnsafe) {
        self.used(node.unsafe_token.span(), "an unsafe block", false);
        syn::visit::visit_expr_unsafe(self, node);
    }

    fn visit_item_impl(&mut self, node: &'ast syn::ItemImpl) {
        if node.unsafety.is_some() {
            self.used(node.span(), "an unsafe impl", false);
        }
        syn::visit::visit_item_impl(self, node);
    }

    fn visit_item_fn(&mut self, node: &'ast syn::ItemFn) {
        if matches!(node.sig.safety, syn::Safety::Unsafe(_)) {
            self.used(node.sig.span(), "an unsafe fn", has_safety_doc(&node.attrs));
        }
        syn::visit::visit_item_fn(self, node);
    }

    fn visit_item_foreign_mod(&mut self, node: &'ast syn::ItemForeignMod) {
        if node.unsafety.is_some() {
            self.used(node.span(), "an unsafe extern block", false);
        }
        syn::visit::visit_item_foreign_mod(self, node);
    }
}

/// Every other crate forbids it, so that macros cannot bring it in either.
pub fn forbidden_where_it_should_be(sources: &[Source]) -> Findings {
    let root = |source: &&Source| source.path.matches('/').count() == 2 && source.path.ends_with("/src/lib.rs");
    let may = ["switch", "linux", "sim", "tests"];
    sources
        .iter()
        .filter(root)
        .filter(|source| !may.contains(&source.folder()) && !source.text.contains(demanded(source)))
        .map(|source| format!("{}:1: no {}", source.path, demanded(source)))
        .collect()
}

fn demanded(source: &Source) -> &'static str {
    if MASK.starts_with(source.folder()) { "#![deny(unsafe_code)]" } else { "#![forbid(unsafe_code)]" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> Findings {
        let source = Source { path: path.to_owned(), text: text.to_owned() };
        check(&source, &source.parse().unwrap())
    }

    #[test]
    fn place_and_comment_are_demanded() {
        let bare = "fn f() {\n    unsafe { g() };\n}\n";
        assert_eq!(findings("vm/src/a.rs", bare).len(), 1);
        assert_eq!(findings("switch/src/a.rs", bare).len(), 1);
        let good = "fn f() {\n    // SAFETY: g is fine.\n    let x =\n        unsafe { g() };\n}\n";
        assert!(findings("switch/src/a.rs", good).is_empty());
        let other = "fn f() {\n    // SAFETY: g is fine.\n    h();\n    unsafe { g() };\n}\n";
        assert_eq!(findings("switch/src/a.rs", other).len(), 1);
        assert_eq!(findings("switch/src/a.rs", "unsafe impl Send for A {}\n").len(), 1);
        assert!(findings("switch/src/a.rs", "/// # Safety\n/// x\nunsafe fn f() {}\n").is_empty());
    }
}
