//! Values that are one word for all protocols, or a table with a word for some:
//! `mapping = "eim"`, `mapping = { udp = "eim" }`.

use conntrack::Protocol;
use toml::de::DeValue;

use super::keys;
use super::problem::{At, Problem, Span};
use super::reader::{Reader, any_of, choose};

impl Reader<'_, '_> {
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
        let path = keys::path("nat", key);
        for (name, value) in table {
            let protocol = Protocol::ALL
                .into_iter()
                .find(|protocol| protocol.to_string() == *name.get_ref());
            let Some(protocol) = protocol else {
                let what = format!("there is no protocol `{}` for `{path}`", name.get_ref());
                let names = Protocol::ALL.map(|protocol| format!("`{protocol}`"));
                let problem = Problem::error("unknown-key", what);
                let problem = problem.why(format!("it takes {}", any_of(&names)));
                self.complain(
                    problem
                        .fix("write one of these")
                        .at(Span::from(name.span())),
                );
                continue;
            };
            let Some(text) = self.text_of(key, value) else {
                continue;
            };
            match choose(&format!("{path}.{protocol}"), text.value, words) {
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
}
