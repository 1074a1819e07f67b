//! One thing that the doctor looked at: how it is, why it matters, and what mends it.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// How much a finding weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing.
    Note,
    /// It runs, but slower or less safely than it could.
    Warning,
    /// It does not run so, or not in the driver.
    Problem,
}

impl Level {
    /// All, from the lightest.
    pub const ALL: [Level; 4] = [Level::Ok, Level::Note, Level::Warning, Level::Problem];
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Warning => "warning",
            Level::Problem => "problem",
        })
    }
}

/// Something of the host that the doctor may change by itself: it takes no link down, cuts nobody
/// off, and can be put back exactly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Setting {
    /// A kernel parameter.
    Sysctl {
        /// Its name in dots or slashes, as `sysctl` takes it.
        key: String,
    },
    /// A feature of an interface, `on` or `off`.
    Feature {
        /// The interface.
        interface: String,
        /// The name that `ethtool -k` shows.
        feature: String,
    },
}

/// What mends a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mend {
    /// The command, as for a root shell; or, in words, what to do where none would help.
    pub command: String,
    /// It is a command.
    pub is_command: bool,
    /// The command that takes it back.
    pub undo: Option<String>,
    /// What `--fix` sets, and to which value, if that is safe.
    pub safe: Option<(Setting, String)>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// A stable path: `host/kernel`, `eth0/mtu`.
    pub name: String,
    /// How much it weighs.
    pub level: Level,
    /// What was seen, for machines; null: it could not be seen.
    pub value: Value,
    /// What it is, in a sentence.
    pub what: String,
    /// Why it matters; empty where all is well.
    pub why: String,
    /// What mends it.
    pub mend: Option<Mend>,
}

impl Finding {
    /// A finding about `place` (`host`, or an interface).
    pub fn new(
        place: &str,
        name: &str,
        level: Level,
        value: impl Into<Value>,
        what: impl Into<String>,
    ) -> Finding {
        Finding {
            name: format!("{place}/{name}"),
            level,
            value: value.into(),
            what: what.into(),
            why: String::new(),
            mend: None,
        }
    }

    /// That something could not be seen.
    pub fn unseen(place: &str, name: &str, what: impl Into<String>) -> Finding {
        Finding::new(place, name, Level::Note, Value::Null, what)
    }

    /// With the reason why it matters.
    pub fn why(mut self, why: impl Into<String>) -> Finding {
        self.why = why.into();
        self
    }

    /// With the command that mends it, and the one that takes that back.
    pub fn mend(mut self, command: impl Into<String>, undo: impl Into<String>) -> Finding {
        self.mend = Some(Mend {
            command: command.into(),
            is_command: true,
            undo: Some(undo.into()).filter(|undo: &String| !undo.is_empty()),
            safe: None,
        });
        self
    }

    /// With what to do about it, in words.
    pub fn advise(mut self, advice: impl Into<String>) -> Finding {
        self.mend = Some(Mend {
            command: advice.into(),
            is_command: false,
            undo: None,
            safe: None,
        });
        self
    }

    /// With what `--fix` does in place of the command.
    pub fn safe(mut self, setting: Setting, value: &str) -> Finding {
        if let Some(mend) = &mut self.mend {
            mend.safe = Some((setting, value.to_owned()));
        }
        self
    }

    /// One object for machines; `name` begins with `doctor/`.
    pub fn json(&self) -> Value {
        let mut object = json!({
            "name": format!("doctor/{}", self.name),
            "value": self.value,
            "level": self.level.to_string(),
            "what": self.what,
        });
        if !self.why.is_empty() {
            object["why"] = json!(self.why);
        }
        if let Some(mend) = &self.mend {
            object["mend"] = json!(mend.command);
            object["is_command"] = json!(mend.is_command);
            object["undo"] = json!(mend.undo);
            object["safe"] = json!(mend.safe.is_some());
        }
        object
    }
}

#[cfg(test)]
pub(super) fn one<'a>(found: &'a [Finding], name: &str) -> &'a Finding {
    let mut of_name = found.iter().filter(|finding| finding.name == name);
    let finding = of_name.next();
    finding.unwrap_or_else(|| panic!("no {name} in {found:#?}"))
}
