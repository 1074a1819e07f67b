//! Where the figures of a run go: to standard output for machines, into charts, onto a page.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use benches::date::Date;
use benches::figure::Figure;
use benches::page::{PageError, with_section};
use benches::plot::group_figures;
use benches::results::{Machine, markdown};
use clap::Args;
use nix::unistd::{AccessFlags, access};
use thiserror::Error;

/// Options that every measuring command has.
#[derive(Clone, Debug, Args)]
pub struct OutputArgs {
    /// Print one JSON object a line, for machines
    #[arg(long)]
    pub json: bool,
    /// Draw the figures as bar charts into this directory, one SVG file a chart
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,
    /// Write the machine and the figures to this Markdown file; what else is in it stays
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
}

/// Why figures could not be written.
#[derive(Debug, Error)]
pub enum OutputError {
    /// The charts have no directory.
    #[error("--svg {}: no directory that can be written: {source}; name another one", path.display())]
    Directory {
        /// As named.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The page is or would be something else than a file.
    #[error("--results {}: not a file; name a Markdown file, an existing or a new one", .0.display())]
    NotAFile(PathBuf),
    /// The page cannot be read or written.
    #[error(
        "--results {}: cannot be read and written: {source}; name a Markdown file in a directory \
         that exists", path.display()
    )]
    Page {
        /// As named.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The page has no clear place for the section.
    #[error("--results {}: {source}", path.display())]
    Section {
        /// As named.
        path: PathBuf,
        /// What is wrong with the page.
        source: PageError,
    },
}

impl OutputArgs {
    /// Makes the directory of the charts, and sees that everything can be written: before a run that
    /// takes minutes. `name`: of the command, as for [`OutputArgs::write`].
    ///
    /// # Errors
    /// Something could not be written.
    pub fn prepare(&self, name: &str) -> Result<(), OutputError> {
        if let Some(path) = &self.svg {
            let made = fs::create_dir_all(path).and_then(|()| writable(path));
            made.map_err(directory_error(path))?;
        }
        if let Some(path) = &self.results {
            let page = read_page(path)?;
            page_with(path, &page, name, "")?;
            let place = match path.exists() {
                true => path,
                false => parent(path),
            };
            writable(place).map_err(page_error(path))?;
        }
        Ok(())
    }

    /// Prints a figure as soon as it is known, if lines for machines are wanted.
    pub fn tell(&self, figure: &Figure) {
        if self.json {
            println!("{}", figure.to_json());
        }
    }

    /// Writes the charts and the page that are wanted, and says so on standard error. `name`: of the
    /// command; its section of the page is replaced.
    ///
    /// # Errors
    /// Something could not be written.
    pub fn write(&self, name: &str, figures: &[Figure]) -> Result<(), OutputError> {
        if let Some(directory) = &self.svg {
            for chart in group_figures(figures) {
                let path = directory.join(chart.name.clone() + ".svg");
                fs::write(&path, chart.to_svg()).map_err(directory_error(directory))?;
                eprintln!("{name}: wrote {}", path.display());
            }
        }
        if let Some(path) = &self.results {
            let command = command_line(std::env::args_os().skip(1));
            let section = markdown(name, &Machine::read(), &command, Date::today(), figures);
            let page = page_with(path, &read_page(path)?, name, &section)?;
            fs::write(path, page).map_err(page_error(path))?;
            eprintln!("{name}: wrote {}", path.display());
        }
        Ok(())
    }
}

fn directory_error(path: &Path) -> impl FnOnce(io::Error) -> OutputError {
    let path = path.to_owned();
    |source| OutputError::Directory { path, source }
}

fn page_error(path: &Path) -> impl FnOnce(io::Error) -> OutputError {
    let path = path.to_owned();
    |source| OutputError::Page { path, source }
}

/// The directory that a file lies in.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != OsStr::new("") => parent,
        _ => Path::new("."),
    }
}

fn writable(path: &Path) -> io::Result<()> {
    Ok(access(path, AccessFlags::W_OK)?)
}

/// The page as it is; empty if there is none.
fn read_page(path: &Path) -> Result<String, OutputError> {
    match fs::metadata(path) {
        // Neither a directory nor a pipe, which would have to be read to its end.
        Ok(metadata) if !metadata.is_file() => Err(OutputError::NotAFile(path.to_owned())),
        Ok(_) => fs::read_to_string(path).map_err(page_error(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(page_error(path)(error)),
    }
}

fn page_with(path: &Path, page: &str, name: &str, section: &str) -> Result<String, OutputError> {
    with_section(page, name, section).map_err(|source| OutputError::Section {
        path: path.to_owned(),
        source,
    })
}

/// The command as it can be given to a shell again.
fn command_line(arguments: impl Iterator<Item = OsString>) -> String {
    let quoted = arguments.map(|argument| quoted(&argument.to_string_lossy()));
    let words = std::iter::once("egret".to_owned()).chain(quoted);
    words.collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_=,./:+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    // One line, whatever is in it.
    let word = word.replace(char::is_control, "\u{fffd}");
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(value: f64) -> Vec<Figure> {
        let figure = |name: &str| Figure::of(name, "Mpps", vec![value]).unwrap();
        vec![figure("core/create/1k/1w"), figure("path/cpu/1k/egret")]
    }

    fn to(svg: Option<&Path>, results: Option<&Path>) -> OutputArgs {
        OutputArgs {
            json: false,
            svg: svg.map(Path::to_owned),
            results: results.map(Path::to_owned),
        }
    }

    /// A directory of this test's own, gone when dropped.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let name = format!("egret-output-{}-{name}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            Scratch(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_chart_a_file_in_a_directory_that_is_made() {
        let scratch = Scratch::new("svg");
        let directory = scratch.0.join("new/charts");
        let output = to(Some(&directory), None);
        output.prepare("egret bench core").unwrap();
        output.write("egret bench core", &figures(1.5)).unwrap();
        let files = fs::read_dir(&directory).unwrap();
        let mut names: Vec<_> = files.map(|file| file.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["core-1w-mpps.svg", "path-cpu-mpps.svg"]);
        let svg = fs::read_to_string(directory.join("core-1w-mpps.svg")).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains(">1.5<"), "{svg}");
    }

    #[test]
    fn several_runs_make_one_page() {
        let scratch = Scratch::new("page");
        let path = scratch.0.join("RESULTS.md");
        let output = to(None, Some(&path));
        for (name, value) in [("core", 1.0), ("path", 2.0), ("core", 3.0)] {
            output.prepare(name).unwrap();
            output.write(name, &figures(value)).unwrap();
        }
        let page = fs::read_to_string(&path).unwrap();
        let count = |text: &str| page.matches(text).count();
        assert_eq!(count("1.00 ("), 0, "{page}");
        assert_eq!((count("2.00 ("), count("3.00 (")), (2, 2), "{page}");
        assert_eq!(
            (count("\n## core\n"), count("\n## path\n")),
            (1, 1),
            "{page}"
        );
        assert!(page.starts_with("# Results\n"), "{page}");
    }

    #[test]
    fn what_cannot_be_written_is_told_before_the_run() {
        let scratch = Scratch::new("errors");
        let file = scratch.0.join("file");
        fs::write(&file, "<!-- begin core -->\n").unwrap();
        let told = |svg: Option<&Path>, results: Option<&Path>| {
            let refused = to(svg, results).prepare("core").unwrap_err();
            refused.to_string()
        };
        let message = told(Some(&file.join("charts")), None);
        assert!(message.contains("file/charts: no directory"), "{message}");
        let message = told(None, Some(&scratch.0.join("none/RESULTS.md")));
        assert!(message.contains("in a directory that exists"), "{message}");
        let message = told(None, Some(&scratch.0));
        assert!(message.contains("not a file; name a"), "{message}");
        let message = told(None, Some(&file));
        assert!(message.contains("has no partner"), "{message}");
        // Looking does not leave a file behind.
        assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 1);
    }

    #[test]
    fn the_command_can_be_given_again() {
        let words = [
            "bench",
            "core",
            "--svg",
            "my charts",
            "--x=it's",
            "",
            "a\nb",
        ];
        assert_eq!(
            command_line(words.into_iter().map(OsString::from)),
            r"egret bench core --svg 'my charts' '--x=it'\''s' '' 'a�b'"
        );
    }
}
