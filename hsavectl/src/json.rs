//! What `--json` prints: values, written with an indent of two as people and `jq` read them.

/// A JSON value. Numbers are whole, and objects keep the order in which they were made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Json {
    Null,
    Bool(bool),
    Number(u64),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    /// An object of these fields.
    pub fn object<const N: usize>(fields: [(&str, Json); N]) -> Self {
        Self::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// A list of what the items become.
    pub fn list<T>(items: impl IntoIterator<Item = T>) -> Self
    where
        Self: From<T>,
    {
        Self::List(items.into_iter().map(Self::from).collect())
    }

    /// The whole text, without a newline at the end.
    pub fn text(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, 0);
        out
    }

    fn write(&self, out: &mut String, depth: usize) {
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Self::Number(value) => out.push_str(&value.to_string()),
            Self::Text(text) => quote(out, text),
            Self::List(items) => {
                let write = |out: &mut String, item: &Json| item.write(out, depth + 1);
                enclose(out, depth, ['[', ']'], items, write);
            }
            Self::Object(fields) => enclose(out, depth, ['{', '}'], fields, |out, (name, value)| {
                quote(out, name);
                out.push_str(": ");
                value.write(out, depth + 1);
            }),
        }
    }
}

fn enclose<T>(out: &mut String, depth: usize, marks: [char; 2], items: &[T], write: impl Fn(&mut String, &T)) {
    let [open, close] = marks;
    out.push(open);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        out.push('\n');
        out.push_str(&"  ".repeat(depth + 1));
        write(out, item);
    }
    if !items.is_empty() {
        out.push('\n');
        out.push_str(&"  ".repeat(depth));
    }
    out.push(close);
}

fn quote(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if c < ' ' || c == '\u{7f}' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}

impl From<bool> for Json {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<u64> for Json {
    fn from(value: u64) -> Self {
        Self::Number(value)
    }
}

impl From<u32> for Json {
    fn from(value: u32) -> Self {
        Self::Number(value.into())
    }
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Json {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl<T> From<Option<T>> for Json
where
    Self: From<T>,
{
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_hold_cannot_break_out() {
        let value = Json::object([("a\"b", Json::from("x\n\u{1}\\\u{7f}é")), ("n", Json::list([1_u64, 2]))]);
        assert_eq!(value.text(), "{\n  \"a\\\"b\": \"x\\n\\u0001\\\\\\u007fé\",\n  \"n\": [\n    1,\n    2\n  ]\n}");
        assert_eq!(Json::list(Vec::<u64>::new()).text(), "[]");
        assert_eq!(Json::from(None::<u64>).text(), "null");
    }
}
