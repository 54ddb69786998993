//! Where guests and callers choose places in tables, each access says how the place is bounded (docs/decisions/0020): by a
//! constant, by a mask, by `get_nospec` of [`GuestIndexed`](../../../arch/src/nospec.rs), or for a reason that is stated.

use super::{Findings, Source, is_test};
use syn::{BinOp, Expr, spanned::Spanned, visit::Visit};

/// Files whose tables guests and callers reach.
const PLACES: &[&str] = &[
    "irqchip/src/",
    "vm/src/msr/",
    "vm/src/hyperv/",
    "vm/src/chips/",
    "vm/src/cpuid/",
    "vm/src/apics.rs",
    "vm/src/vm.rs",
    "vm/src/coalesced.rs",
    "abi/src/",
    "mmu/src/bitmap.rs",
    "mmu/src/dirty.rs",
    "mmu/src/maps.rs",
    "mmu/src/memory.rs",
    "mmu/src/slot.rs",
];
const METHODS: &[&str] = &["get", "get_mut", "nth"];
/// What a reason begins with.
const REASON: &str = "// INDEX:";

struct Visitor<'a> {
    lines: Vec<&'a str>,
    path: &'a str,
    findings: Findings,
}

pub fn check(source: &Source, file: &syn::File) -> Findings {
    let path = source.path.as_str();
    let tests = path.ends_with("/tests.rs") || path.contains("/tests/") || is_test(&file.attrs);
    if tests || !PLACES.iter().any(|place| path.starts_with(place)) {
        return Findings::new();
    }
    let mut visitor = Visitor { lines: source.text.lines().collect(), path, findings: Findings::new() };
    visitor.visit_file(file);
    visitor.findings
}

/// Is it the same whatever a processor guesses: a number, a constant, or a remainder or mask by one?
fn bounded(index: &Expr) -> bool {
    match index {
        Expr::Lit(_) => true,
        Expr::Path(path) => {
            path.path.segments.last().is_some_and(|s| s.ident.to_string().chars().all(|c| !c.is_lowercase()))
        }
        Expr::Paren(inner) => bounded(&inner.expr),
        Expr::Cast(cast) => bounded(&cast.expr),
        // `usize::from(…)`
        Expr::Call(call) => call.args.len() == 1 && call.args.iter().all(bounded),
        Expr::Range(range) => [&range.start, &range.end].into_iter().flatten().all(|end| bounded(end)),
        Expr::Binary(b) => match b.op {
            BinOp::Rem(_) | BinOp::BitAnd(_) => bounded(&b.right),
            BinOp::Div(_) | BinOp::Shr(_) => bounded(&b.left),
            BinOp::Add(_) | BinOp::Sub(_) | BinOp::Mul(_) => bounded(&b.left) && bounded(&b.right),
            _ => false,
        },
        _ => false,
    }
}

impl Visitor<'_> {
    fn access(&mut self, index: &Expr, line: usize) {
        if !bounded(index) && !self.has_reason(line) {
            self.findings.push(format!("{}:{line}: an index without get_nospec or `{REASON} why`", self.path));
        }
    }

    /// On the line, or in the comment right above the statement that the line belongs to.
    fn has_reason(&self, line: usize) -> bool {
        let at = |line: usize| self.lines.get(line.wrapping_sub(1)).map_or("", |text| text.trim());
        if at(line).contains(REASON) {
            return true;
        }
        for above in (1..line).rev().map(at) {
            if above.starts_with("//") {
                if above.contains(REASON) {
                    return true;
                }
            } else if above.is_empty() || above.ends_with([';', '{', '}']) {
                return false;
            }
        }
        false
    }
}

impl<'ast> Visit<'ast> for Visitor<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_test(&item.attrs) {
            syn::visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_const(&mut self, _: &'ast syn::ItemConst) {}

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        if METHODS.contains(&call.method.to_string().as_str()) {
            // Two arguments are those of other things' `get`.
            if let (Some(index), 1) = (call.args.first(), call.args.len()) {
                self.access(index, call.method.span().start().line);
            }
        }
        syn::visit::visit_expr_method_call(self, call);
    }

    fn visit_expr_index(&mut self, expr: &'ast syn::ExprIndex) {
        self.access(&expr.index, expr.span().start().line);
        syn::visit::visit_expr_index(self, expr);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> usize {
        let source = Source { path: path.to_owned(), text: text.to_owned() };
        check(&source, &source.parse().unwrap()).len()
    }

    #[test]
    fn a_chosen_index_needs_get_nospec_or_a_reason() {
        let lines = |access: &str| findings("irqchip/src/a.rs", &format!("fn f() {{\n    {access};\n}}\n"));
        for bad in [
            "t.get(i)",
            "t.get_mut(i as usize)",
            "t[i]",
            "t.iter().nth(n)",
            "t.get(..n)",
            "t.get(i + 1)",
            "t.get(i / N)",
        ] {
            assert_eq!(lines(bad), 1, "{bad}");
        }
        let good = [
            "t.get_nospec(i)",
            "t.get(3)",
            "t.get(FIRST..)",
            "t.get(usize::from(port & 3))",
            "t[(i as usize) % SIZE]",
            "c.get()",
            "c.get(0xd, i)",
            "// INDEX: ours.\n    t.get(i)",
            "let a =\n        t.get(i); // INDEX: ours.\n    g()",
        ];
        for good in good {
            assert_eq!(lines(good), 0, "{good}");
        }
        assert_eq!(lines("// INDEX: of another statement.\n    g();\n    t.get(i)"), 1);
        assert_eq!(findings("vm/src/run.rs", "fn f() { t.get(i); }"), 0, "no such place");
        assert_eq!(findings("abi/src/a.rs", "#[cfg(test)]\nmod tests { fn f() { t[i]; } }"), 0);
    }
}
