//! Figures as bar charts: groups of bars side by side, with whiskers for the spread, as SVG. On no
//! background, in greys and colours that can be read on a light and on a dark one.

use std::fmt::{self, Write as _};

use crate::figure::Figure;

const TEXT: &str = "#777c84";
const COLOURS: [&str; 8] = [
    "#4c8eda", "#e08b3e", "#46a878", "#b06fc4", "#c9a227", "#d0605e", "#4aa8b5", "#8f8f8f",
];
const BAR_WIDTH: f64 = 36.0;
const GROUP_GAP: f64 = 28.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 16.0;
const PLOT_WIDTH_MIN: f64 = 400.0;
const PLOT_HEIGHT: f64 = 240.0;
const LINE_HEIGHT: f64 = 20.0;
/// A letter's width at most, for the sizes used; a mean, for no font is known here.
const LETTER: f64 = 7.2;
const TITLE_LETTER: f64 = 9.0;

/// One bar.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// What it is one of; bars of the same name have the same colour.
    pub label: String,
    /// Its height: the median.
    pub value: f64,
    /// Where its whisker begins: the smallest value.
    pub low: f64,
    /// Where its whisker ends: the largest value.
    pub high: f64,
}

/// Bars side by side.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// What stands under them.
    pub label: String,
    /// The bars.
    pub bars: Vec<Bar>,
}

/// A chart of figures that have a unit in common.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// A name for a file, without an ending: lower-case letters, digits and dashes.
    pub name: String,
    /// What stands above it.
    pub title: String,
    /// The unit of all its values.
    pub unit: String,
    /// The groups, in the order in which the figures came.
    pub groups: Vec<Group>,
}

impl Chart {
    /// The chart as an SVG file.
    pub fn to_svg(&self) -> String {
        bars(&self.title, &self.unit, &self.groups)
    }

    /// The names of its bars, in the order in which they come first.
    pub fn names(&self) -> Vec<&str> {
        names(&self.groups)
    }
}

/// A figure's place: the title of its chart, its group and its bar.
fn place(figure: &Figure) -> Option<(String, String, &str)> {
    let parts: Vec<&str> = figure.name.split('/').collect();
    match parts[..] {
        ["path", test, flows, contender] => {
            Some((format!("path: {test}"), format!("{flows} flows"), contender))
        }
        ["core", test, sessions, workers] => {
            let group = format!("{sessions} sessions");
            Some((format!("{}: {workers}", core_chart(test)), group, test))
        }
        _ => None,
    }
}

/// Which of the core charts a test belongs to: some are far faster than others, or many.
fn core_chart(test: &str) -> &'static str {
    let pages = ["-small-pages", "-bpf-array"];
    match test {
        "lookup" | "dashmap" | "papaya" | "limit" | "limit-line" => "core yardsticks",
        _ if pages.iter().any(|pages| test.ends_with(pages)) => "core in other pages",
        _ => "core",
    }
}

/// Has a figure a place in one of the charts that [`group_figures`] makes?
pub fn is_charted(figure: &Figure) -> bool {
    place(figure).is_some()
}

/// Makes the charts for the figures that have a place in one: `path/TEST/FLOWS/CONTENDER` in a chart
/// for the test, with groups by flows and bars by contender; `core/TEST/SESSIONS/WORKERS` in a chart
/// for the number of workers (and others for yardsticks and other pages), with groups by sessions and
/// bars by test. Another unit is another chart.
pub fn group_figures(figures: &[Figure]) -> Vec<Chart> {
    let mut charts: Vec<Chart> = Vec::new();
    for figure in figures {
        let Some((title, group, label)) = place(figure) else {
            continue;
        };
        let bar = Bar {
            label: label.to_owned(),
            value: figure.value,
            low: figure.low,
            high: figure.high,
        };
        let of_this = |chart: &Chart| chart.title == title && chart.unit == figure.unit;
        let at = charts.iter().position(of_this).unwrap_or_else(|| {
            charts.push(Chart {
                name: file_name(&format!("{title} {}", figure.unit)),
                title,
                unit: figure.unit.to_owned(),
                groups: Vec::new(),
            });
            charts.len() - 1
        });
        let groups = &mut charts[at].groups;
        match groups.iter_mut().find(|there| there.label == group) {
            Some(there) => there.bars.push(bar),
            None => groups.push(Group {
                label: group,
                bars: vec![bar],
            }),
        }
    }
    charts
}

/// Words as a file's name.
fn file_name(words: &str) -> String {
    let letters = |c: char| c.is_ascii_alphanumeric();
    let parts = words.split(|c| !letters(c)).filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join("-").to_lowercase()
}

/// Draws a chart. Values that are no numbers, or below 0, count as 0.
pub fn bars(title: &str, unit: &str, groups: &[Group]) -> String {
    let mut svg = String::new();
    // Writing to a string does not fail.
    let _ = draw(&mut svg, title, unit, groups);
    svg
}

fn draw(svg: &mut String, title: &str, unit: &str, groups: &[Group]) -> fmt::Result {
    let names = names(groups);
    let axis = Axis::up_to(groups.iter().flat_map(|group| &group.bars));
    let slot = slot_width(groups, names.len());
    let titled = title.chars().count() as f64 * TITLE_LETTER - LEFT + RIGHT;
    let plot = (slot * groups.len() as f64).max(PLOT_WIDTH_MIN).max(titled);
    let slot = plot / groups.len().max(1) as f64;
    let width = LEFT + plot + RIGHT;
    let legend = legend(&names, width);
    let lines = legend.last().map_or(0.0, |entry| entry.line + 1.0);
    // Title, legend, and room for the unit and for what stands above the highest bar.
    let top = 32.0 + lines * LINE_HEIGHT + 38.0;
    let bottom = top + PLOT_HEIGHT;
    let height = bottom + 30.0;
    writeln!(
        svg,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0} {height:.0}" width="{width:.0}" height="{height:.0}" font-family="system-ui, Helvetica, Arial, sans-serif" font-size="12" fill="{TEXT}">"#
    )?;
    let title = escaped(title);
    writeln!(svg, r#"<title>{title}</title>"#)?;
    writeln!(
        svg,
        r#"<text x="12" y="24" font-size="16" font-weight="600">{title}</text>"#
    )?;
    for (number, entry) in legend.iter().enumerate() {
        let (x, y) = (entry.x, 34.0 + entry.line * LINE_HEIGHT);
        let (colour, text) = (colour(number), escaped(names[number]));
        writeln!(
            svg,
            r#"<rect class="key" x="{x:.1}" y="{y:.1}" width="11" height="11" rx="2" fill="{colour}"/><text x="{:.1}" y="{:.1}">{text}</text>"#,
            x + 16.0,
            y + 10.0
        )?;
    }
    let unit_y = top - 22.0;
    writeln!(
        svg,
        r#"<text x="12" y="{unit_y:.1}">{}</text>"#,
        escaped(unit)
    )?;
    axis.draw(svg, bottom, width)?;
    for (number, group) in groups.iter().enumerate() {
        let middle = LEFT + slot * (number as f64 + 0.5);
        let label = escaped(&group.label);
        writeln!(
            svg,
            r#"<text x="{middle:.1}" y="{:.1}" text-anchor="middle">{label}</text>"#,
            bottom + 20.0
        )?;
        let first = middle - BAR_WIDTH * names.len() as f64 / 2.0;
        for bar in &group.bars {
            let place = names.iter().position(|&name| name == bar.label);
            let place = place.expect("every bar has a name");
            let x = first + BAR_WIDTH * place as f64;
            draw_bar(svg, &axis, bar, x, bottom, colour(place))?;
        }
    }
    writeln!(svg, "</svg>")
}

/// A bar, its whisker, and its value above both.
fn draw_bar(
    svg: &mut String,
    axis: &Axis,
    bar: &Bar,
    x: f64,
    bottom: f64,
    colour: &str,
) -> fmt::Result {
    let y = |value: f64| bottom - PLOT_HEIGHT * number(value) / axis.top;
    let (top, low) = (y(bar.value), y(bar.low).min(bottom));
    let high = y(bar.high).min(top);
    let middle = x + BAR_WIDTH / 2.0;
    writeln!(
        svg,
        r#"<rect class="bar" x="{:.1}" y="{top:.1}" width="{:.1}" height="{:.1}" fill="{colour}"/>"#,
        x + 2.0,
        BAR_WIDTH - 4.0,
        bottom - top
    )?;
    if low - high >= 1.0 {
        let (left, right) = (middle - 5.0, middle + 5.0);
        let path = format!(
            "M{left:.1} {high:.1}H{right:.1}M{left:.1} {low:.1}H{right:.1}M{middle:.1} {high:.1}V{low:.1}"
        );
        // Dark in a light border: it can be seen on a bar and on any background.
        writeln!(
            svg,
            r##"<path d="{path}" stroke="#ffffff" stroke-opacity="0.75" stroke-width="3.5"/><path class="whisker" d="{path}" stroke="#33373d" stroke-width="1.5"/>"##
        )?;
    }
    writeln!(
        svg,
        r#"<text x="{middle:.1}" y="{:.1}" font-size="11" text-anchor="middle">{}</text>"#,
        high - 5.0,
        short(number(bar.value))
    )
}

/// The names of bars, in the order in which they come first.
fn names(groups: &[Group]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for bar in groups.iter().flat_map(|group| &group.bars) {
        if !names.contains(&bar.label.as_str()) {
            names.push(&bar.label);
        }
    }
    names
}

/// A group's width: its bars or its label, whichever is wider, and a gap.
fn slot_width(groups: &[Group], bars: usize) -> f64 {
    let letters = groups.iter().map(|group| group.label.chars().count()).max();
    let label = letters.unwrap_or(0) as f64 * LETTER;
    (bars as f64 * BAR_WIDTH).max(label) + GROUP_GAP
}

fn colour(number: usize) -> &'static str {
    COLOURS[number % COLOURS.len()]
}

/// Where an entry of the legend stands.
struct Entry {
    x: f64,
    line: f64,
}

fn legend(names: &[&str], width: f64) -> Vec<Entry> {
    let (mut x, mut line) = (12.0, 0.0);
    let entry = |name: &&str| {
        let needs = 16.0 + name.chars().count() as f64 * LETTER;
        if x + needs > width - RIGHT && x > 12.0 {
            (x, line) = (12.0, line + 1.0);
        }
        let entry = Entry { x, line };
        x += needs + 18.0;
        entry
    };
    names.iter().map(entry).collect()
}

/// The axis of values: from 0 in round steps to the first step that no whisker is above.
struct Axis {
    step: f64,
    top: f64,
}

impl Axis {
    fn up_to<'a>(bars: impl Iterator<Item = &'a Bar>) -> Axis {
        let highest = bars.map(|bar| number(bar.value).max(number(bar.high)));
        let highest = highest.fold(0.0, f64::max);
        // Subnormal steps would divide by zero.
        let highest = if highest > 1e-300 { highest } else { 1.0 };
        let magnitude = 10_f64.powf((highest / 5.0).log10().floor());
        let steps = [1.0, 2.0, 2.5, 5.0, 10.0].map(|step| step * magnitude);
        let fits = |step: &f64| highest <= step * 5.0 * (1.0 + 1e-9);
        let step = steps.into_iter().find(fits).unwrap_or(10.0 * magnitude);
        let count = (highest / step - 1e-9).ceil().max(1.0);
        Axis {
            step,
            top: step * count,
        }
    }

    fn draw(&self, svg: &mut String, bottom: f64, width: f64) -> fmt::Result {
        let count = (self.top / self.step).round() as u32;
        for tick in 0..=count {
            let y = bottom - PLOT_HEIGHT * f64::from(tick) / f64::from(count);
            let opacity = if tick == 0 { 1.0 } else { 0.22 };
            writeln!(
                svg,
                r#"<path d="M{LEFT:.1} {y:.1}H{:.1}" stroke="{TEXT}" stroke-opacity="{opacity}"/><text class="tick" x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
                width - RIGHT,
                LEFT - 8.0,
                y + 4.0,
                short(self.step * f64::from(tick))
            )?;
        }
        Ok(())
    }
}

/// A value that can be drawn.
fn number(value: f64) -> f64 {
    if value.is_finite() {
        value.max(0.0)
    } else {
        0.0
    }
}

/// A number in three digits or so, such as `0.25`, `14.2`, `1.5M`, `2.5e-6`.
fn short(value: f64) -> String {
    if value != 0.0 && !(1e-3..1e9).contains(&value) {
        return format!("{value:.1e}");
    }
    let (scaled, suffix) = match value {
        value if value >= 1e6 => (value / 1e6, "M"),
        value if value >= 1e4 => (value / 1e3, "k"),
        value => (value, ""),
    };
    let decimals = match scaled {
        scaled if scaled >= 100.0 => 0,
        scaled if scaled >= 10.0 => 1,
        scaled if scaled >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{scaled:.decimals$}");
    let text = match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.'),
        false => &text,
    };
    format!("{text}{suffix}")
}

/// Text for XML: what it may not have becomes a replacement character.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&apos;"),
            '\u{fffe}' | '\u{ffff}' => safe.push('\u{fffd}'),
            c if c.is_control() => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests;
