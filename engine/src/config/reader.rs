//! Reads a TOML tree key by key and collects every complaint on the way, each with its place.

use std::cell::RefCell;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{self, KEYS};
use super::problem::{At, Problem, Span};

/// Where complaints are collected.
pub(super) type Problems = RefCell<Vec<Problem>>;

type Node<'i> = Spanned<DeValue<'i>>;

/// One table of the file.
pub(super) struct Reader<'a, 'i> {
    table: &'a DeTable<'i>,
    name: &'static str,
    span: Span,
    problems: &'a Problems,
}

impl<'a, 'i> Reader<'a, 'i> {
    /// Starts on a table; complains about keys that it does not have.
    pub(super) fn new(
        table: &'a DeTable<'i>,
        name: &'static str,
        span: Span,
        problems: &'a Problems,
    ) -> Reader<'a, 'i> {
        let reader = Reader {
            table,
            name,
            span,
            problems,
        };
        for key in table.keys() {
            if keys::find(name, key.get_ref()).is_none() {
                reader.complain(unknown_key(name, key.get_ref()).at(Span::from(key.span())));
            }
        }
        reader
    }

    pub(super) fn complain(&self, problem: Problem) {
        self.problems.borrow_mut().push(problem);
    }

    /// A key of this table as a user names it.
    pub(super) fn path(&self, key: &str) -> String {
        keys::path(self.name, key)
    }

    pub(super) fn node(&self, key: &str) -> Option<&'a Node<'i>> {
        debug_assert!(
            keys::find(self.name, key).is_some(),
            "{key} is not in the list of keys"
        );
        self.table.get(key)
    }

    /// Where a key's value stands.
    pub(super) fn span_of(&self, key: &str) -> Option<Span> {
        self.node(key).map(|node| node.span().into())
    }

    /// Does the file set the key?
    pub(super) fn has(&self, key: &str) -> bool {
        self.node(key).is_some()
    }

    /// The names of the keys that the file sets, out of those that exist.
    pub(super) fn given(&self) -> impl Iterator<Item = String> {
        self.table
            .keys()
            .filter(|key| keys::find(self.name, key.get_ref()).is_some())
            .map(|key| keys::path(self.name, key.get_ref()))
    }

    fn wrong_type(&self, key: &str, node: &Node<'_>) {
        let path = keys::path(self.name, key);
        let takes = keys::find(self.name, key).map_or("", |key| key.takes);
        let what = format!("`{path}` is {}", kind(node.get_ref()));
        let problem = Problem::error("wrong-type", what).why(format!("it takes {takes}"));
        let fix = type_hint(node.get_ref(), takes, &path);
        self.complain(problem.fix(fix).at(Span::from(node.span())));
    }

    /// A string.
    pub(super) fn text(&self, key: &str) -> Option<At<&'a str>> {
        let node = self.node(key)?;
        self.text_of(key, node)
    }

    pub(super) fn text_of(&self, key: &str, node: &'a Node<'i>) -> Option<At<&'a str>> {
        let text = node.get_ref().as_str();
        if text.is_none() {
            self.wrong_type(key, node);
        }
        text.map(|text| At::new(text, node.span()))
    }

    /// A string that `parse` understands.
    pub(super) fn parsed<T>(
        &self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, Problem>,
    ) -> Option<At<T>> {
        let text = self.text(key)?;
        self.parse_at(text, &parse)
    }

    fn parse_at<T>(
        &self,
        text: At<&str>,
        parse: impl Fn(&str) -> Result<T, Problem>,
    ) -> Option<At<T>> {
        match parse(text.value) {
            Ok(value) => Some(At {
                value,
                span: text.span,
            }),
            Err(problem) => {
                self.complain(problem.at(text.span));
                None
            }
        }
    }

    /// One string or a list of strings, each of which `parse` understands.
    pub(super) fn list<T>(
        &self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, Problem>,
    ) -> Option<Vec<At<T>>> {
        let texts = self
            .nodes(key)?
            .into_iter()
            .filter_map(|node| self.text_of(key, node));
        Some(
            texts
                .filter_map(|text| self.parse_at(text, &parse))
                .collect(),
        )
    }

    /// One string or whole number, or a list of them: a number is parsed as its digits.
    pub(super) fn list_or_numbers<T>(
        &self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, Problem>,
    ) -> Option<Vec<At<T>>> {
        let values = self.nodes(key)?.into_iter().filter_map(|node| {
            let text = self.text_or_number(key, node)?;
            self.parse_at(
                At {
                    value: text.value.as_str(),
                    span: text.span,
                },
                &parse,
            )
        });
        Some(values.collect())
    }

    /// One string or whole number; a number is parsed as its digits.
    pub(super) fn parsed_or_number<T>(
        &self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, Problem>,
    ) -> Option<At<T>> {
        let text = self.text_or_number(key, self.node(key)?)?;
        self.parse_at(
            At {
                value: text.value.as_str(),
                span: text.span,
            },
            &parse,
        )
    }

    fn text_or_number(&self, key: &str, node: &'a Node<'i>) -> Option<At<String>> {
        let text = match node.get_ref() {
            DeValue::Integer(number) if number.radix() == 10 => number.as_str().to_owned(),
            _ => self.text_of(key, node)?.value.to_owned(),
        };
        Some(At::new(text, node.span()))
    }

    /// The values of a list; a single value is a list of one.
    fn nodes(&self, key: &str) -> Option<Vec<&'a Node<'i>>> {
        let node = self.node(key)?;
        Some(match node.get_ref() {
            DeValue::Array(array) => array.iter().collect(),
            _ => vec![node],
        })
    }

    /// A whole number from `min` to `max`.
    pub(super) fn integer(&self, key: &str, min: u32, max: u32) -> Option<At<u32>> {
        self.integer_of(key, self.node(key)?, min, max)
    }

    pub(super) fn integer_of(
        &self,
        key: &str,
        node: &Node<'_>,
        min: u32,
        max: u32,
    ) -> Option<At<u32>> {
        let DeValue::Integer(number) = node.get_ref() else {
            self.wrong_type(key, node);
            return None;
        };
        let value = i64::from_str_radix(number.as_str(), number.radix()).ok();
        let value = value.and_then(|value| u32::try_from(value).ok());
        match value.filter(|value| (min..=max).contains(value)) {
            Some(value) => Some(At::new(value, node.span())),
            None => {
                let what = format!("`{}` is {}", keys::path(self.name, key), number.as_str());
                let problem = Problem::error("out-of-range", what);
                let allowed = format!("it takes {min} to {max}");
                let low =
                    number.as_str().starts_with('-') || value.is_some_and(|value| value < min);
                let fix = if low {
                    format!("write {min} or more")
                } else {
                    format!("write {max} or less")
                };
                self.complain(problem.why(allowed).fix(fix).at(Span::from(node.span())));
                None
            }
        }
    }

    /// One whole number or a list of them, each from `min` to `max`.
    pub(super) fn integers(&self, key: &str, min: u32, max: u32) -> Option<Vec<At<u32>>> {
        let nodes = self.nodes(key)?.into_iter();
        Some(
            nodes
                .filter_map(|node| self.integer_of(key, node, min, max))
                .collect(),
        )
    }

    /// Is the key set to `[]`?
    pub(super) fn is_empty_list(&self, key: &str) -> bool {
        self.nodes(key).is_some_and(|nodes| nodes.is_empty())
    }

    /// true or false.
    pub(super) fn boolean(&self, key: &str) -> Option<bool> {
        let node = self.node(key)?;
        let value = node.get_ref().as_bool();
        if value.is_none() {
            self.wrong_type(key, node);
        }
        value
    }

    /// One of some words.
    pub(super) fn choice<T: Copy>(&self, key: &str, words: &[(&str, T)]) -> Option<At<T>> {
        let path = keys::path(self.name, key);
        self.parsed(key, |text| choose(&path, text, words))
    }

    /// A table, written `[key]`.
    pub(super) fn table(&self, key: &'static str) -> Option<Reader<'a, 'i>> {
        let node = self.node(key)?;
        let Some(table) = node.get_ref().as_table() else {
            self.wrong_type(key, node);
            return None;
        };
        Some(Reader::new(table, key, node.span().into(), self.problems))
    }

    /// A list of tables, written `[[key]]`.
    pub(super) fn tables(&self, key: &'static str) -> Vec<Reader<'a, 'i>> {
        let Some(node) = self.node(key) else {
            return Vec::new();
        };
        let Some(array) = node.get_ref().as_array() else {
            self.wrong_type(key, node);
            return Vec::new();
        };
        let tables = array
            .iter()
            .filter_map(|item| match item.get_ref().as_table() {
                Some(table) => Some(Reader::new(table, key, item.span().into(), self.problems)),
                None => {
                    self.wrong_type(key, item);
                    None
                }
            });
        tables.collect()
    }

    /// Complains that a required key is not there.
    pub(super) fn missing(&self, key: &str, fix: &str) {
        let what = format!("`{}` is missing", keys::path(self.name, key));
        let takes = keys::find(self.name, key).map_or("", |key| key.takes);
        let place = (!self.name.is_empty()).then_some(self.span);
        let problem = Problem::error("missing-key", what).why(format!("it takes {takes}"));
        self.complain(problem.fix(fix).at(place));
    }
}

/// The value of a word; the problem names the key by its path.
pub(super) fn choose<T: Copy>(path: &str, text: &str, words: &[(&str, T)]) -> Result<T, Problem> {
    let word = words.iter().find(|(word, _)| *word == text);
    word.map(|&(_, value)| value).ok_or_else(|| {
        let what = format!("`{path}` is \"{text}\"");
        let allowed: Vec<String> = words
            .iter()
            .map(|(word, _)| format!("\"{word}\""))
            .collect();
        let near = keys::nearest(text, words.iter().map(|&(word, _)| word));
        Problem::error("unknown-word", what)
            .why(format!("it takes {}", any_of(&allowed)))
            .fix(near.map_or("write one of these".to_owned(), |near| {
                format!("write \"{near}\"")
            }))
    })
}

/// "a", "a or b", "a, b or c".
pub(super) fn any_of(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a point",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// What to write instead, where the value shows what was meant.
fn type_hint(value: &DeValue<'_>, takes: &str, path: &str) -> String {
    let number = |text: &str| !takes.contains('"') && text.parse::<u32>().is_ok();
    let truth = |text: &str| takes.contains("true") && (text == "true" || text == "false");
    match value {
        DeValue::String(text) if number(text) || truth(text) => {
            format!("write {text} without quotes")
        }
        _ => format!("see `{path}` in egret.sample.toml"),
    }
}

fn unknown_key(table: &'static str, name: &str) -> Problem {
    let place = if table.is_empty() {
        "at the top level".to_owned()
    } else {
        format!("in [{table}]")
    };
    let problem = Problem::error("unknown-key", format!("there is no key `{name}` {place}"));
    let names = || {
        KEYS.iter()
            .filter(|key| key.table == table)
            .map(|key| key.name)
    };
    let all: Vec<String> = names().map(|name| format!("`{name}`")).collect();
    let problem = problem.why(format!("it has {}", all.join(", ")));
    // Most often a line of the top level that was written below a [table].
    let namesakes = KEYS.iter().filter(|key| key.name == name);
    if let Some(elsewhere) = namesakes.min_by_key(|key| keys::is_list(key.table)) {
        return problem.fix(match elsewhere.table {
            "" => format!("`{name}` belongs at the top level: write it above the first [table]"),
            table => format!("`{name}` belongs in [{table}]"),
        });
    }
    match keys::nearest(name, names()) {
        Some(near) => problem.fix(format!("write `{near}`")),
        None => problem.fix("remove it, or see egret.sample.toml for every key"),
    }
}
