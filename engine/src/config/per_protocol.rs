//! Values that are one for all protocols, or a table with one for some: `mapping = "eim"`,
//! `mapping = { udp = "eim" }`.

use conntrack::Protocol;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{At, Problem, Span};
use super::reader::{Reader, any_of, choose};

impl<'i> Reader<'_, 'i> {
    /// A word by [`Protocol::index`]; that of `others` where the file has none.
    pub(super) fn per_protocol_or<T: Copy>(
        &self,
        key: &str,
        words: &[(&str, T)],
        others: [At<T>; 3],
    ) -> [At<T>; 3] {
        let values = self.per_protocol(key, words, others[0].value);
        let or_other = |number: usize| match values[number].span {
            Some(_) => values[number],
            None => others[number],
        };
        [0, 1, 2].map(or_other)
    }

    /// A word by [`Protocol::index`]; the default where the file has none.
    pub(super) fn per_protocol<T: Copy>(
        &self,
        key: &str,
        words: &[(&str, T)],
        default: T,
    ) -> [At<T>; 3] {
        let mut values = [At::default_value(default); 3];
        let Some(node) = self.node(key) else {
            return values;
        };
        let DeValue::Table(table) = node.get_ref() else {
            return self.choice(key, words).map_or(values, |one| [one; 3]);
        };
        for (protocol, value) in self.protocols(key, table) {
            let Some(text) = self.text_of(key, value) else {
                continue;
            };
            match choose(&format!("{}.{protocol}", self.path(key)), text.value, words) {
                Ok(value) => {
                    values[protocol.index()] = At {
                        value,
                        span: text.span,
                    };
                }
                Err(problem) => self.complain(problem.at(text.span)),
            }
        }
        values
    }

    /// A whole number from `min` to `max` by [`Protocol::index`]; none where the file has none.
    pub(super) fn integer_per_protocol(&self, key: &str, min: u32, max: u32) -> [Option<u32>; 3] {
        let Some(node) = self.node(key) else {
            return [None; 3];
        };
        let DeValue::Table(table) = node.get_ref() else {
            return [self.integer(key, min, max).map(|at| at.value); 3];
        };
        let mut values = [None; 3];
        if table.is_empty() {
            let what = format!("`{}` is an empty table", self.path(key));
            let problem = Problem::error("empty-table", what).why("it sets nothing");
            let fix = "write a number for a protocol, or leave the key out";
            self.complain(problem.fix(fix).at(self.span_of(key)));
        }
        for (protocol, value) in self.protocols(key, table) {
            let number = self.integer_of(key, value, min, max);
            values[protocol.index()] = number.map(|at| at.value);
        }
        values
    }

    /// The entries of a table by protocol; complains about other names.
    fn protocols<'t>(
        &self,
        key: &str,
        table: &'t DeTable<'i>,
    ) -> Vec<(Protocol, &'t Spanned<DeValue<'i>>)> {
        let mut entries = Vec::new();
        for (name, value) in table {
            let protocol = Protocol::ALL
                .into_iter()
                .find(|protocol| protocol.to_string() == *name.get_ref());
            if let Some(protocol) = protocol {
                entries.push((protocol, value));
                continue;
            }
            let path = self.path(key);
            let what = format!("there is no protocol `{}` for `{path}`", name.get_ref());
            let names = Protocol::ALL.map(|protocol| format!("`{protocol}`"));
            let problem = Problem::error("unknown-key", what);
            let problem = problem.why(format!("it takes {}", any_of(&names)));
            let problem = problem.fix("write one of these");
            self.complain(problem.at(Span::from(name.span())));
        }
        entries
    }
}
