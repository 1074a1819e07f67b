//! Problems of a configuration: what is wrong, where, why it matters, and what mends it.

use std::fmt::{self, Write as _};
use std::ops::{Deref, Range};

/// How much a problem weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// The gateway cannot run so.
    Error,
    /// It runs, but probably not as meant, or not safely.
    Warning,
    /// Worth knowing.
    Note,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Note => "note",
        })
    }
}

/// A part of the configuration file: byte offsets, the end excluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// The byte after the last.
    pub end: usize,
}

impl From<Range<usize>> for Span {
    fn from(range: Range<usize>) -> Span {
        Span {
            start: range.start,
            end: range.end,
        }
    }
}

/// A value and where the file says it; no place for a default. Two are equal when their values
/// are, wherever they stand.
#[derive(Clone, Copy, Debug)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Its place in the file.
    pub span: Option<Span>,
}

impl<T> At<T> {
    /// A value that the file does not name.
    pub const fn default_value(value: T) -> At<T> {
        At { value, span: None }
    }

    /// A value and its place.
    pub fn new(value: T, span: impl Into<Span>) -> At<T> {
        At {
            value,
            span: Some(span.into()),
        }
    }
}

impl<T> Deref for At<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: PartialEq> PartialEq for At<T> {
    fn eq(&self, other: &At<T>) -> bool {
        self.value == other.value
    }
}

impl<T: Eq> Eq for At<T> {}

/// One thing that is wrong, or worth knowing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How much it weighs.
    pub level: Level,
    /// A stable name for scripts and tests, such as `no-such-interface`.
    pub name: &'static str,
    /// What it is; names the value.
    pub what: String,
    /// Why it matters, or what would be allowed.
    pub why: String,
    /// What mends it: a command, or what to write. Empty where there is nothing to do.
    pub fix: String,
    /// Where the file says it.
    pub span: Option<Span>,
}

impl Problem {
    /// A problem of that level, without a place, reason or remedy yet.
    pub fn new(level: Level, name: &'static str, what: impl Into<String>) -> Problem {
        let (why, fix) = (String::new(), String::new());
        Problem {
            level,
            name,
            what: what.into(),
            why,
            fix,
            span: None,
        }
    }

    /// An error: the gateway cannot run so.
    pub fn error(name: &'static str, what: impl Into<String>) -> Problem {
        Problem::new(Level::Error, name, what)
    }

    /// A warning.
    pub fn warning(name: &'static str, what: impl Into<String>) -> Problem {
        Problem::new(Level::Warning, name, what)
    }

    /// A note.
    pub fn note(name: &'static str, what: impl Into<String>) -> Problem {
        Problem::new(Level::Note, name, what)
    }

    /// With the reason, or with what is allowed.
    pub fn why(mut self, why: impl Into<String>) -> Problem {
        self.why = why.into();
        self
    }

    /// With the remedy.
    pub fn fix(mut self, fix: impl Into<String>) -> Problem {
        self.fix = fix.into();
        self
    }

    /// With its place in the file.
    pub fn at(mut self, span: impl Into<Option<Span>>) -> Problem {
        self.span = span.into();
        self
    }

    /// The problem as several lines, with the line of the file that it is about:
    ///
    /// ```text
    /// error: what
    ///   --> egret.toml:1:12
    ///    |
    ///  1 | internal = "10.77.0.1/24"
    ///    |            ^^^^^^^^^^^^^^
    ///    = why: ...
    ///    = fix: ...
    /// ```
    pub fn render(&self, source: &Source) -> String {
        let mut out = format!("{}: {}\n", self.level, self.what);
        let mut margin = "  ".to_owned();
        if let Some(span) = self.span {
            let place = source.place(span);
            let number = place.line.to_string();
            margin = " ".repeat(number.len() + 2);
            let _ = writeln!(
                out,
                "{}--> {}:{}:{}",
                &margin[1..],
                source.name,
                place.line,
                place.column
            );
            let _ = writeln!(out, "{margin}|\n {number} | {}", place.text);
            let (indent, marks) = (" ".repeat(place.column - 1), "^".repeat(place.width));
            let _ = writeln!(out, "{margin}| {indent}{marks}");
        }
        for (label, text) in [("why", &self.why), ("fix", &self.fix)] {
            if !text.is_empty() {
                let _ = writeln!(out, "{margin}= {label}: {text}");
            }
        }
        out
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.level, self.what)?;
        for text in [&self.why, &self.fix] {
            if !text.is_empty() {
                write!(f, "; {text}")?;
            }
        }
        Ok(())
    }
}

/// The text of a configuration and what to call it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Source {
    /// The file's name, for messages.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// A span in lines and columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Characters of the span on that line, at least 1.
    pub width: usize,
    /// The line, tabs as one blank each so that columns stay true.
    pub text: String,
}

impl Source {
    /// Where a span is. A span over several lines is shown by its first one.
    pub fn place(&self, span: Span) -> Place {
        let start = floor_boundary(&self.text, span.start);
        let end = floor_boundary(&self.text, span.end).max(start);
        let line_start = self.text[..start]
            .rfind('\n')
            .map_or(0, |newline| newline + 1);
        let rest = &self.text[line_start..];
        let text = rest.split('\n').next().unwrap_or("").trim_end_matches('\r');
        let line_end = line_start + text.len();
        let width = self.text[start..end.clamp(start, line_end.max(start))]
            .chars()
            .count();
        Place {
            line: self.text[..start].matches('\n').count() + 1,
            column: self.text[line_start..start].chars().count() + 1,
            width: width.max(1),
            text: text
                .chars()
                .map(|c| if c.is_control() { ' ' } else { c })
                .collect(),
        }
    }
}

/// The last character boundary at or before `at`.
fn floor_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Everything that is wrong with a configuration, with its text: displays as one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file.
    pub source: Source,
    /// At least one error; warnings and notes may be among them. In the order of the file.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, problem) in self.problems.iter().enumerate() {
            let separator = if number == 0 { "" } else { "\n" };
            write!(f, "{separator}{}", problem.render(&self.source))?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
