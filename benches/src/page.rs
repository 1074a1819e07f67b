//! A page of Markdown with a section for each command that measures.
//!
//! A section lies between two comments that name it, each on a line of its own. A command replaces its
//! own section; what else is on the page, written by hand or by another command, stays as it is.

use std::fmt;
use std::ops::Range;

/// What a new page begins with.
const HEADING: &str = "# Results\n";

/// Why a section cannot be put into a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PageError {
    /// This marker stands on more than one line.
    Twice(String),
    /// This marker stands alone, or behind the one that ends the section.
    Unpaired(String),
}

impl fmt::Display for PageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PageError::Twice(marker) => {
                write!(f, "the line `{marker}` is there twice: remove one section")
            }
            PageError::Unpaired(marker) => write!(
                f,
                "the line `{marker}` has no partner: a section has a line that begins it and, behind \
                 that, one that ends it; put the other one back, or remove this one"
            ),
        }
    }
}

impl std::error::Error for PageError {}

/// The page with `text` as its section `name`: in place of what that section was, else at the end.
/// `page`: empty for a new one. `name`: words without line ends.
///
/// # Errors
/// Where the section begins and ends on the page cannot be told.
pub fn with_section(page: &str, name: &str, text: &str) -> Result<String, PageError> {
    let (begin, end) = (
        format!("<!-- begin {name} -->"),
        format!("<!-- end {name} -->"),
    );
    let section = format!("{begin}\n{}\n{end}\n", text.trim_end());
    match (find_line(page, &begin)?, find_line(page, &end)?) {
        (Some(first), Some(last)) if first.end <= last.start => {
            Ok([&page[..first.start], &section, &page[last.end..]].concat())
        }
        (None, None) => {
            let before = match page.trim_end() {
                "" => HEADING.trim_end(),
                before => before,
            };
            Ok(format!("{before}\n\n{section}"))
        }
        (Some(_), _) => Err(PageError::Unpaired(begin)),
        (None, Some(_)) => Err(PageError::Unpaired(end)),
    }
}

/// Where the line `wanted` stands, its end included.
fn find_line(page: &str, wanted: &str) -> Result<Option<Range<usize>>, PageError> {
    let mut at = 0;
    let lines = page.split_inclusive('\n').map(|line| {
        let start = at;
        at += line.len();
        (line, start..at)
    });
    let mut places = lines.filter(|(line, _)| line.trim() == wanted);
    let place = places.next().map(|(_, place)| place);
    match places.next() {
        Some(_) => Err(PageError::Twice(wanted.to_owned())),
        None => Ok(place),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_come_one_after_the_other_below_one_heading() {
        let page = with_section("", "a", "first\n").unwrap();
        assert_eq!(
            page,
            "# Results\n\n<!-- begin a -->\nfirst\n<!-- end a -->\n"
        );
        let page = with_section(&page, "b", "second").unwrap();
        assert_eq!(
            page,
            "# Results\n\n<!-- begin a -->\nfirst\n<!-- end a -->\n\n\
             <!-- begin b -->\nsecond\n<!-- end b -->\n"
        );
    }

    #[test]
    fn only_the_section_of_that_name_changes() {
        let page = |middle: &str| {
            format!(
                "# Mine\r\n\ntext \n<!-- begin ab -->\nother\n<!-- end ab -->\n\
                 <!-- begin a -->\n{middle}\n<!-- end a -->\nand so on, without an end of line"
            )
        };
        let (old, new) = (page("old\n\n## lines"), page("new"));
        assert_eq!(with_section(&old, "a", "new").unwrap(), new);
        assert_eq!(with_section(&new, "a", "new").unwrap(), new);
        let at_the_end = with_section(&new, "c", "more").unwrap();
        assert_eq!(
            at_the_end.strip_prefix(&new),
            Some("\n\n<!-- begin c -->\nmore\n<!-- end c -->\n")
        );
    }

    #[test]
    fn a_page_whose_markers_do_not_fit_is_refused() {
        let (begin, end) = ("<!-- begin a -->", "<!-- end a -->");
        for (page, error) in [
            (format!("{begin}\ntext"), PageError::Unpaired(begin.into())),
            (format!("text\n{end}\n"), PageError::Unpaired(end.into())),
            (
                format!("{end}\n{begin}\n"),
                PageError::Unpaired(begin.into()),
            ),
            (
                format!("{begin}\n{end}\n{begin}\n{end}\n"),
                PageError::Twice(begin.into()),
            ),
        ] {
            assert_eq!(with_section(&page, "a", "new"), Err(error), "{page}");
        }
        // Within a line they are no markers.
        let page = format!("about `{begin}`\n");
        assert!(with_section(&page, "a", "new").unwrap().starts_with(&page));
    }
}
