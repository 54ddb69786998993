//! Nothing in the module's crates is written to panic; what the compiler adds, `./x panics` counts.

use super::{Findings, Source, is_test};
use syn::{spanned::Spanned, visit::Visit};

const METHODS: &[&str] = &["unwrap", "expect", "unwrap_err", "expect_err"];
const MACROS: &[&str] = &["panic", "todo", "unimplemented", "unreachable", "assert", "assert_eq", "assert_ne"];

struct Visitor<'a> {
    source: &'a Source,
    findings: Findings,
}

pub fn check(source: &Source, file: &syn::File) -> Findings {
    // What it has is there to panic, in modules that are built for tests.
    let on_purpose = source.path == "linux/src/on_purpose.rs";
    if on_purpose || is_test(&file.attrs) || source.path.ends_with("/tests.rs") || source.path.contains("/tests/") {
        return Findings::new();
    }
    let mut visitor = Visitor { source, findings: Findings::new() };
    visitor.visit_file(file);
    visitor.findings
}

impl Visitor<'_> {
    fn found(&mut self, line: usize, what: &str) {
        self.findings.push(format!("{}:{line}: {what} may panic", self.source.path));
    }
}

impl<'ast> Visit<'ast> for Visitor<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let attributes = match item {
            syn::Item::Mod(item) => &item.attrs,
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            // Evaluated by the compiler: a panic there stops the build.
            syn::Item::Const(_) => return,
            _ => return syn::visit::visit_item(self, item),
        };
        if !is_test(attributes) {
            syn::visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_test(&item.attrs) {
            syn::visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_impl_item_const(&mut self, _: &'ast syn::ImplItemConst) {}

    fn visit_expr_const(&mut self, _: &'ast syn::ExprConst) {}

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        let name = call.method.to_string();
        if METHODS.contains(&name.as_str()) {
            self.found(call.method.span().start().line, &format!(".{name}()"));
        }
        syn::visit::visit_expr_method_call(self, call);
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        if let Some(name) = MACROS.iter().find(|name| item.path.is_ident(name)) {
            self.found(item.span().start().line, &format!("{name}!"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_and_constants_may_panic_and_nothing_else() {
        let text = "const _: () = assert!(true);\nfn f() { x.unwrap(); todo!() }\n\
                    #[cfg(test)]\nmod tests { fn g() { x.unwrap(); } }\n";
        let source = Source { path: "vm/src/a.rs".into(), text: text.into() };
        let findings = check(&source, &source.parse().unwrap());
        assert_eq!(findings, ["vm/src/a.rs:2: .unwrap() may panic", "vm/src/a.rs:2: todo! may panic"]);
    }
}
