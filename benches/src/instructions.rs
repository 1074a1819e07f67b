//! Instruction counts against their limits: what the bench `instructions` counted, and what the file
//! `benches/instructions.toml` allows.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

/// How far a count may be above its limit, percent. Another compiler or C library moves them a bit.
pub const SLACK_PERCENT: u64 = 3;
/// What writes the limits anew.
pub const UPDATE: &str = "cargo run -p egret-benches --bin instructions -- --update";

/// Counted instructions by `STEP/CASE`, such as `hit/outbound_udp`.
pub type Counts = BTreeMap<String, u64>;

/// The limits, and what they were counted with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The architecture that they are for, as in `std::env::consts::ARCH`.
    pub machine: String,
    /// The compiler, as `rustc --version` says.
    pub compiler: String,
    /// The limits.
    pub counts: Counts,
}

/// Reads what the bench said with `--output-format=json`: one object a line.
///
/// # Errors
/// The line that is not understood.
pub fn counted(lines: &str) -> Result<Counts, String> {
    let count = |line: &str| -> Option<(String, u64)> {
        let said: Value = serde_json::from_str(line).ok()?;
        let name = format!(
            "{}/{}",
            said["function_name"].as_str()?,
            said["id"].as_str()?
        );
        let metrics = said.pointer("/profiles/0/data/total")?;
        Some((name, find(metrics, "Ir")?["values"]["new"].as_u64()?))
    };
    let lines = lines.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| count(line).ok_or_else(|| format!("not understood: {line}")))
        .collect()
}

/// The value of a key, wherever below `value` it is.
fn find<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    let object = value.as_object()?;
    object
        .get(key)
        .or_else(|| object.values().find_map(|below| find(below, key)))
}

impl Limits {
    /// Reads the file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Limits, String> {
        let table: toml::Table = text.parse().map_err(|error| format!("{error}"))?;
        let word = |key: &str| {
            let word = table.get(key).and_then(toml::Value::as_str);
            word.map(str::to_owned).ok_or(format!("no `{key}`"))
        };
        let mut counts = Counts::new();
        for (step, cases) in &table {
            for (case, limit) in cases.as_table().into_iter().flatten() {
                let limit = limit.as_integer().and_then(|limit| limit.try_into().ok());
                let limit = limit.ok_or_else(|| format!("{step}.{case} is no count"))?;
                counts.insert(format!("{step}/{case}"), limit);
            }
        }
        Ok(Limits {
            machine: word("machine")?,
            compiler: word("compiler")?,
            counts,
        })
    }

    /// The file for these limits.
    pub fn to_toml(&self) -> String {
        let mut text = format!(
            "# Instructions for a batch of 64 frames, counted by callgrind. A count that is more than \
             {SLACK_PERCENT} % above\n# fails; after a change that is worth it, write them anew:\n#\n\
             #   {UPDATE}\n\nmachine = \"{}\"\ncompiler = \"{}\"\n",
            self.machine, self.compiler
        );
        let mut table = "";
        for (name, count) in &self.counts {
            let (step, case) = name.split_once('/').unwrap_or((name, "all"));
            if step != table {
                let _ = writeln!(text, "\n[{step}]");
                table = step;
            }
            let _ = writeln!(text, "{case} = {count}");
        }
        text
    }

    /// Holds counts against the limits.
    pub fn judge(&self, counts: &Counts) -> Judgement {
        let (mut text, mut broken) = (String::new(), Vec::new());
        for (name, &count) in counts {
            let Some(&limit) = self.counts.get(name) else {
                broken.push(format!("{name} has no limit"));
                continue;
            };
            let percent = (count as f64 / limit as f64 - 1.0) * 100.0;
            let _ = writeln!(
                text,
                "{name:<18} {count:>8}  limit {limit:>8}  {percent:+.1} %"
            );
            if 100 * count > (100 + SLACK_PERCENT) * limit {
                broken.push(format!(
                    "{name} takes {count} instructions, its limit is {limit}"
                ));
            } else if 100 * count < (100 - SLACK_PERCENT) * limit {
                let _ = writeln!(text, "  note: keep the gain: {UPDATE}");
            }
        }
        let gone = self
            .counts
            .keys()
            .filter(|name| !counts.contains_key(*name));
        broken.extend(gone.map(|name| format!("{name} has a limit and was not counted")));
        Judgement { text, broken }
    }
}

/// Counts beside their limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// A line for each.
    pub text: String,
    /// What does not hold; empty: all is well.
    pub broken: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        let counts = [("hit/out", 1000), ("hit/in", 2000), ("refuse/full", 10)];
        Limits {
            machine: "x86_64".to_owned(),
            compiler: "rustc 1.95.0".to_owned(),
            counts: counts.map(|(name, count)| (name.to_owned(), count)).into(),
        }
    }

    #[test]
    fn the_file_says_what_was_written() {
        assert_eq!(Limits::parse(&limits().to_toml()), Ok(limits()));
        for wrong in [
            "",
            "machine = \"x\"\ncompiler = \"y\"\n[hit]\nout = -1\n",
            "[",
        ] {
            assert!(Limits::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn three_percent_more_are_let_through_and_no_more() {
        let mut counts = limits().counts;
        counts.insert("hit/out".to_owned(), 1030);
        counts.insert("hit/in".to_owned(), 1940);
        assert!(!limits().judge(&counts).text.contains("note"));
        counts.insert("hit/in".to_owned(), 1939);
        let fine = limits().judge(&counts);
        assert_eq!(fine.broken, Vec::<String>::new());
        assert!(fine.text.contains("keep the gain"), "{}", fine.text);
        counts.insert("hit/out".to_owned(), 1031);
        let broken = limits().judge(&counts).broken;
        assert_eq!(
            broken,
            ["hit/out takes 1031 instructions, its limit is 1000"]
        );
    }

    #[test]
    fn what_comes_and_goes_is_told() {
        let mut counts = limits().counts;
        let count = counts.remove("hit/in").unwrap();
        counts.insert("hit/new".to_owned(), count);
        let broken = limits().judge(&counts).broken;
        assert_eq!(
            broken,
            [
                "hit/new has no limit",
                "hit/in has a limit and was not counted"
            ]
        );
    }

    #[test]
    fn the_bench_is_understood() {
        let line = r#"{"function_name":"hit","id":"out","profiles":[{"data":{"total":
            {"summary":{"Callgrind":{"Ir":{"values":{"new":89844,"old":1}}}}}}}]}"#;
        let counts = counted(&format!("\n{}\n", line.replace('\n', ""))).unwrap();
        assert_eq!(counts, [("hit/out".to_owned(), 89_844)].into());
        assert!(counted("{}").unwrap_err().contains("{}"));
    }
}
