//! Expands the macros of the assembly, so that a broken variant can change one line of one function.

use std::collections::HashMap;

/// Parameters with their defaults, and the lines.
type Macro = (Vec<(String, String)>, Vec<String>);

/// Expands every macro but those that are not defined in `text`. Comments and empty lines are left out.
pub fn expand(text: &str) -> String {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or("").trim_end().to_owned());
    let lines: Vec<String> = lines.filter(|line| !line.is_empty()).collect();
    let mut out = String::new();
    lines_of(&lines, &mut HashMap::new(), &mut out);
    out
}

fn lines_of(lines: &[String], macros: &mut HashMap<String, Macro>, out: &mut String) {
    let mut taken = Vec::new();
    let mut lines = lines.iter();
    while let Some(line) = lines.next() {
        let (word, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        match word {
            ".if" => taken.push(if let Some(not) = rest.strip_prefix('!') { not == "0" } else { rest != "0" }),
            ".else" => {
                let last = taken.last_mut().expect(".if before .else");
                *last = !*last;
            }
            ".endif" => {
                taken.pop();
            }
            _ if taken.contains(&false) => {}
            ".macro" => {
                let (name, parameters) = rest.split_once(' ').unwrap_or((rest, ""));
                let parameters = arguments(parameters).into_iter().map(|p| match p.split_once('=') {
                    Some((name, default)) => (name.to_owned(), default.to_owned()),
                    None => (p, String::new()),
                });
                let (mut body, mut depth) = (Vec::new(), 1);
                while depth > 0 {
                    let line = lines.next().expect(".endm");
                    depth += line.starts_with(".macro") as i32 - line.starts_with(".endm") as i32;
                    body.push(line.clone());
                }
                body.pop();
                macros.insert(name.to_owned(), (parameters.collect(), body));
            }
            _ => match macros.get(word).cloned() {
                Some((parameters, body)) => {
                    let given = arguments(rest);
                    let values = parameters
                        .iter()
                        .enumerate()
                        .map(|(n, (name, default))| (format!("\\{name}"), given.get(n).unwrap_or(default).as_str()));
                    let mut values: Vec<_> = values.collect();
                    values.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
                    let put = |line: &String| values.iter().fold(line.clone(), |l, (name, v)| l.replace(name, v));
                    lines_of(&body.iter().map(put).collect::<Vec<_>>(), macros, out);
                }
                None => {
                    out.push_str(line);
                    out.push('\n');
                }
            },
        }
    }
}

fn arguments(text: &str) -> Vec<String> {
    text.split(',')
        .map(|a| a.trim().trim_matches('"').to_owned())
        .filter(|a| !text.is_empty() || !a.is_empty())
        .collect()
}
