use super::*;
use roxmltree::{Document, Node};

fn bar(label: &str, value: f64, low: f64, high: f64) -> Bar {
    Bar {
        label: label.to_owned(),
        value,
        low,
        high,
    }
}

fn group(label: &str, bars: Vec<Bar>) -> Group {
    Group {
        label: label.to_owned(),
        bars,
    }
}

fn figure(name: &str, unit: &'static str, values: [f64; 3]) -> Figure {
    Figure::of(name, unit, values.to_vec()).expect("values")
}

fn attribute(node: Node<'_, '_>, name: &str) -> f64 {
    node.attribute(name).expect(name).parse().expect(name)
}

/// Everything lies on the canvas: bars, whiskers, and text as wide as it is taken to be.
fn assert_fits(svg: &str) {
    let document = Document::parse(svg).unwrap_or_else(|error| panic!("{error}\n{svg}"));
    let root = document.root_element();
    let (width, height) = (attribute(root, "width"), attribute(root, "height"));
    for node in root.descendants() {
        match node.tag_name().name() {
            "rect" => {
                let (x, y) = (attribute(node, "x"), attribute(node, "y"));
                let (w, h) = (attribute(node, "width"), attribute(node, "height"));
                let fits = x >= 0.0 && y >= 0.0 && w > 0.0 && h >= 0.0;
                assert!(fits && x + w <= width && y + h <= height, "{node:?}");
            }
            "text" => {
                let is_title = node.attribute("font-size") == Some("16");
                let letter = if is_title { TITLE_LETTER } else { LETTER };
                let text = node.text().unwrap_or_default().chars().count() as f64 * letter;
                let x = attribute(node, "x");
                let (left, right) = match node.attribute("text-anchor") {
                    Some("middle") => (x - text / 2.0, x + text / 2.0),
                    Some("end") => (x - text, x),
                    _ => (x, x + text),
                };
                let y = attribute(node, "y");
                let fits = left >= 0.0 && right <= width && y >= 12.0 && y <= height;
                assert!(fits, "{node:?} {:?}: {left} to {right}", node.text());
            }
            "path" => {
                let path = node.attribute("d").expect("a path");
                let numbers = path.split(|c: char| !(c.is_ascii_digit() || ".-".contains(c)));
                for number in numbers.filter(|number| !number.is_empty()) {
                    let number: f64 = number.parse().expect("a number");
                    assert!((0.0..=width.max(height)).contains(&number), "{path}");
                }
            }
            _ => {}
        }
    }
}

#[test]
fn a_chart_is_well_formed_and_nothing_is_outside() {
    let groups = [
        group(
            "1k flows",
            vec![
                bar("egret", 14.2, 13.9, 14.4),
                bar("nftables", 3.1, 1.0, 9.0),
            ],
        ),
        group(
            "1M flows",
            vec![bar("nftables", 0.004, 0.0, 16.0), bar("vpp", 1.0, 1.0, 1.0)],
        ),
    ];
    let svg = bars("UDP, 64 bytes", "Mpps", &groups);
    assert_fits(&svg);
    assert_eq!(svg.matches("class=\"bar\"").count(), 4);
    assert_eq!(svg.matches("class=\"key\"").count(), 3);
    // The last has no spread.
    assert_eq!(svg.matches("class=\"whisker\"").count(), 3);
}

#[test]
fn odd_values_and_sizes_stay_on_the_canvas() {
    let odd = [
        0.0,
        -5.0,
        f64::NAN,
        f64::INFINITY,
        f64::MIN_POSITIVE,
        1e-12,
        1e300,
        5.0,
    ];
    for first in odd {
        for second in odd {
            let pair = vec![
                bar("a", first, second, first),
                bar("b", second, first, second),
            ];
            assert_fits(&bars("odd", "x", &[group("g", pair)]));
        }
    }
    assert_fits(&bars("nothing", "Mpps", &[]));
    assert_fits(&bars("an empty group", "Mpps", &[group("g", Vec::new())]));
    let names: Vec<String> = (0..12).map(|n| format!("a contender's name {n}")).collect();
    let many = names
        .iter()
        .map(|name| bar(name, 1e7, 9e6, 1.1e7))
        .collect();
    assert_fits(&bars(
        &"a long title ".repeat(9),
        "1/s",
        &[group(&"g".repeat(200), many)],
    ));
}

#[test]
fn labels_are_escaped() {
    let label = "<a href=\"x\"> & 'b' \u{1}";
    let svg = bars(
        label,
        label,
        &[group(label, vec![bar(label, 1.0, 1.0, 1.0)])],
    );
    let document = Document::parse(&svg).expect("well-formed");
    let texts = document.descendants().filter(Node::is_text);
    let texts = texts.filter_map(|node| node.text());
    let there = texts.filter(|text| *text == label.replace('\u{1}', "\u{fffd}"));
    // The title twice, the legend, the unit, the group.
    assert_eq!(there.count(), 5, "{svg}");
}

#[test]
fn ticks_are_round_and_no_bar_is_above_them() {
    for (highest, step, top) in [
        (14.4, 5.0, 15.0),
        (10.0, 2.0, 10.0),
        (1.0, 0.2, 1.0),
        (0.11, 0.025, 0.125),
        (999.0, 200.0, 1000.0),
        (1001.0, 250.0, 1250.0),
        (0.0, 0.2, 1.0),
    ] {
        let axis = Axis::up_to([bar("a", highest, 0.0, 0.0)].iter());
        assert!((axis.step - step).abs() < 1e-9, "{highest}: {}", axis.step);
        assert!((axis.top - top).abs() < 1e-9, "{highest}: {}", axis.top);
    }
    let texts = [0.0, 0.025, 0.4, 2.5, 14.25, 250.0, 9000.0, 12_500.0, 3e6].map(short);
    let expected = [
        "0", "0.025", "0.4", "2.5", "14.2", "250", "9000", "12.5k", "3M",
    ];
    assert_eq!(texts, expected);
}

#[test]
fn figures_find_their_charts() {
    let charts = group_figures(&[
        figure("path/udp-64/1k/egret", "Mpps", [1.0, 2.0, 3.0]),
        figure("path/udp-64/1k/nftables", "Mpps", [1.0; 3]),
        figure("path/udp-64/1M/egret", "Mpps", [1.0; 3]),
        figure("path/udp-64/1k/egret", "us", [9.0; 3]),
        figure("core/hit-outbound/1k/1w", "Mpps", [1.0; 3]),
        figure("core/create/1k/1w", "Mpps", [1.0; 3]),
        figure("core/hit-outbound/1k/2w", "Mpps", [1.0; 3]),
        figure("core/limit/1k/1w", "Mpps", [9.0; 3]),
        figure("core/create-bpf-array/1k/1w", "Mpps", [1.0; 3]),
        figure("demo/one-arm", "s", [1.0; 3]),
    ]);
    let names: Vec<&str> = charts.iter().map(|chart| chart.name.as_str()).collect();
    let expected = [
        "path-udp-64-mpps",
        "path-udp-64-us",
        "core-1w-mpps",
        "core-2w-mpps",
        "core-yardsticks-1w-mpps",
        "core-in-other-pages-1w-mpps",
    ];
    assert_eq!(names, expected);
    let labels = |chart: &Chart| -> Vec<(String, Vec<String>)> {
        let bars = |group: &Group| group.bars.iter().map(|bar| bar.label.clone()).collect();
        chart
            .groups
            .iter()
            .map(|group| (group.label.clone(), bars(group)))
            .collect()
    };
    let own = |words: &[&str]| {
        words
            .iter()
            .map(|&word| word.to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        labels(&charts[0]),
        [
            ("1k flows".to_owned(), own(&["egret", "nftables"])),
            ("1M flows".to_owned(), own(&["egret"])),
        ]
    );
    assert_eq!(charts[0].groups[0].bars[0], bar("egret", 2.0, 1.0, 3.0));
    let sessions = ("1k sessions".to_owned(), own(&["hit-outbound", "create"]));
    assert_eq!(labels(&charts[2]), [sessions]);
    charts.iter().for_each(|chart| assert_fits(&chart.to_svg()));
}

/// `EGRET_PLOT=DIR cargo test -p egret-benches plot` leaves charts there to look at.
#[test]
fn charts_to_look_at() {
    let path = |test: &str, flows: &str, contender: &str, value: f64| {
        let name = format!("path/{test}/{flows}/{contender}");
        figure(&name, "Mpps", [value * 0.93, value, value * 1.05])
    };
    let mut figures = Vec::new();
    for (flows, scale) in [("1k", 1.0), ("64k", 0.8), ("1M", 0.45)] {
        for (contender, value) in [
            ("egret", 1.84),
            ("nftables", 0.92),
            ("vpp", 1.5),
            ("tun", 0.3),
        ] {
            figures.push(path("udp-64", flows, contender, value * scale));
        }
        for (test, value) in [
            ("hit-outbound", 14.2),
            ("hit-inbound", 13.1),
            ("create", 2.9),
            ("refuse", 10.0),
            ("parse", 38.0),
        ] {
            let value = value * scale;
            let name = format!("core/{test}/{flows}/1w");
            figures.push(figure(&name, "Mpps", [value * 0.97, value, value * 1.01]));
        }
    }
    let charts = group_figures(&figures);
    assert_eq!(charts.len(), 2);
    for chart in charts {
        let svg = chart.to_svg();
        assert_fits(&svg);
        if let Some(directory) = std::env::var_os("EGRET_PLOT") {
            let file = std::path::Path::new(&directory).join(format!("{}.svg", chart.name));
            std::fs::write(file, svg).expect("writing a chart");
        }
    }
}
