//! The doctor's findings on a terminal.

use console::{Style, Term};
use engine::doctor::{Facts, Finding, Level};

use super::Done;
use crate::demo::report::terminal_width;

/// Columns before a finding's text.
const INDENT: usize = 11;
/// Columns of a page that goes elsewhere than to a terminal.
const WIDTH: usize = 100;

/// How wide a page is, and whether it has colours.
pub struct Page {
    width: usize,
    colours: bool,
}

impl Page {
    /// As standard output wants it.
    pub fn of_terminal() -> Page {
        Page {
            width: terminal_width().map_or(WIDTH, usize::from).max(40),
            colours: Term::stdout().features().colors_supported(),
        }
    }

    /// The whole page.
    pub fn text(&self, facts: &Facts, found: &[Finding], done: &[Done]) -> String {
        let mut out = String::new();
        let mut last = "";
        for finding in found {
            let (place, name) = finding.name.split_once('/').unwrap_or(("", &finding.name));
            if place != last {
                let space = if last.is_empty() { "" } else { "\n" };
                out += &format!("{space}{}\n", self.bold(&title(place, facts)));
                last = place;
            }
            self.finding(name, finding, &mut out);
        }
        if !facts.unseen.is_empty() {
            out += &format!("\n{}\n", self.bold("not seen"));
        }
        for unseen in &facts.unseen {
            self.paragraph(&format!("{}: {}", unseen.what, unseen.why), 2, &mut out);
        }
        if !done.is_empty() {
            out += &format!("\n{}\n", self.bold("changed by --fix"));
        }
        for one in done {
            let told = match &one.error {
                None => format!("{} ({})", one.what, one.name),
                Some(error) => format!("not {} ({}): {error}", one.what, one.name),
            };
            self.paragraph(&told, 2, &mut out);
        }
        out += "\n";
        self.paragraph(&closing(found, done), 0, &mut out);
        out
    }

    fn finding(&self, name: &str, finding: &Finding, out: &mut String) {
        let level = finding.level;
        let style = match level {
            Level::Ok => Style::new().green(),
            Level::Note => Style::new().cyan(),
            Level::Warning => Style::new().yellow().bold(),
            Level::Problem => Style::new().red().bold(),
        };
        let label = self.styled(&format!("{:<8}", level.to_string()), style);
        let mut text = String::new();
        self.paragraph(&format!("{name}: {}", finding.what), INDENT, &mut text);
        *out += &format!("  {label} {}", text.trim_start());
        if level == Level::Ok {
            return;
        }
        if !finding.why.is_empty() {
            self.paragraph(&finding.why, INDENT, out);
        }
        let Some(mend) = &finding.mend else { return };
        let safe = if mend.safe.is_some() {
            "  (--fix does it)"
        } else {
            ""
        };
        if !mend.is_command {
            self.paragraph(&format!("-> {}", mend.command), INDENT, out);
            return;
        }
        let indent = " ".repeat(INDENT);
        // In one piece, to be copied.
        *out += &format!("{indent}fix:  {}{safe}\n", self.bold(&mend.command));
        if let Some(undo) = &mend.undo {
            *out += &format!("{indent}undo: {undo}\n");
        }
    }

    /// Words in lines of at most the page's width, each line indented.
    fn paragraph(&self, text: &str, indent: usize, out: &mut String) {
        let mut column = 0;
        for word in text.split_whitespace() {
            let len = word.chars().count();
            if column > 0 && column + 1 + len > self.width {
                *out += "\n";
                column = 0;
            }
            let space = if column == 0 { indent } else { 1 };
            *out += &" ".repeat(space);
            *out += word;
            column += space + len;
        }
        *out += "\n";
    }

    fn bold(&self, text: &str) -> String {
        self.styled(text, Style::new().bold())
    }

    fn styled(&self, text: &str, style: Style) -> String {
        style.force_styling(self.colours).apply_to(text).to_string()
    }
}

/// An interface with its driver.
fn title(place: &str, facts: &Facts) -> String {
    let interface = facts.interfaces.iter().find(|one| one.name == place);
    match interface.map(|one| one.driver.as_str()) {
        Some(driver) if !driver.is_empty() => format!("{place} ({driver})"),
        _ => place.to_owned(),
    }
}

fn closing(found: &[Finding], done: &[Done]) -> String {
    let count = |level| found.iter().filter(|one| one.level == level).count();
    let plural = |count: usize, word: &str| match count {
        1 => format!("1 {word}"),
        _ => format!("{count} {word}s"),
    };
    let mut text = format!(
        "{}, {}, {}, {} ok.",
        plural(count(Level::Problem), "problem"),
        plural(count(Level::Warning), "warning"),
        plural(count(Level::Note), "note"),
        count(Level::Ok)
    );
    let safe = |one: &&Finding| {
        let mend = one.mend.as_ref();
        one.level > Level::Ok && mend.is_some_and(|mend| mend.safe.is_some())
    };
    if found.iter().any(|one| safe(&one)) {
        text += " `egret doctor --fix` does what is safe.";
    }
    if !done.is_empty() {
        text += " `egret doctor --undo` puts back what --fix changed.";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(found: &[Finding]) -> String {
        let page = Page {
            width: 80,
            colours: false,
        };
        page.text(&Facts::default(), found, &[])
    }

    #[test]
    fn text_fits_the_page_and_commands_stay_whole() {
        let long = "a word after another ".repeat(12);
        let command = format!("ethtool -K eth0 {}", "x".repeat(90));
        let finding = Finding::new("eth0", "mtu", Level::Problem, 9001, long.clone())
            .why(long)
            .mend(command.clone(), "back");
        let text = page(&[finding]);
        let lines = || text.lines();
        assert!(lines().any(|line| line.trim() == format!("fix:  {command}")));
        let wide = lines().filter(|line| !line.contains("fix:"));
        assert!(
            wide.map(|line| line.chars().count()).max() <= Some(80),
            "{text}"
        );
        assert!(text.starts_with("eth0\n  problem  mtu: a word"), "{text}");
        assert!(
            text.contains("1 problem, 0 warnings, 0 notes, 0 ok."),
            "{text}"
        );
    }

    #[test]
    fn advice_is_text() {
        let advised = Finding::new("a", "b", Level::Note, 1, "c").advise("word ".repeat(40));
        let text = page(&[advised]);
        assert!(text.contains("           -> word word"), "{text}");
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    }

    #[test]
    fn what_is_well_takes_one_line() {
        let finding = Finding::new("host", "jit", Level::Ok, true, "compiled").why("not shown");
        assert_eq!(
            page(&[finding]),
            "host\n  ok       jit: compiled\n\n0 problems, 0 warnings, 0 notes, 1 ok.\n"
        );
    }
}
