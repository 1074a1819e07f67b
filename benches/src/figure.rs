//! One measured number, as every measuring command prints it.

use std::fmt;

/// A measured number with its spread over the rounds of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Stable path, such as `core/hit-outbound/1M/1w`.
    pub name: String,
    /// Median of the rounds.
    pub value: f64,
    /// What the value counts, such as `Mpps`.
    pub unit: &'static str,
    /// Smallest value of a round.
    pub low: f64,
    /// Largest value of a round.
    pub high: f64,
}

impl Figure {
    /// The median and the spread of the rounds' values; none without a value.
    pub fn of(name: impl Into<String>, unit: &'static str, mut values: Vec<f64>) -> Option<Figure> {
        values.sort_unstable_by(f64::total_cmp);
        let (low, high) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let value = match values.len() % 2 {
            1 => values[middle],
            _ => (values[middle - 1] + values[middle]) / 2.0,
        };
        Some(Figure {
            name: name.into(),
            value,
            unit,
            low,
            high,
        })
    }

    /// The figure as one line of JSON.
    pub fn to_json(&self) -> String {
        let Figure {
            name,
            value,
            unit,
            low,
            high,
        } = self;
        format!(
            r#"{{"name":"{name}","value":{value:.4},"unit":"{unit}","low":{low:.4},"high":{high:.4}}}"#
        )
    }
}

impl fmt::Display for Figure {
    /// The value to three digits or more, and its unit.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", digits(self.value), self.unit)
    }
}

/// A value to three digits or more.
pub fn digits(value: f64) -> String {
    let decimals = match value.abs() {
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        value if value >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_and_the_spread() {
        let odd = Figure::of("a", "us", vec![3.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.value, odd.low, odd.high), (2.0, 1.0, 3.0));
        let even = Figure::of("a", "us", vec![4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!((even.value, even.low, even.high), (2.5, 1.0, 4.0));
        assert_eq!(Figure::of("a", "us", vec![]), None);
    }

    #[test]
    fn json_and_text() {
        let figure = Figure::of("core/limit/1M/1w", "Mpps", vec![126.25]).unwrap();
        assert_eq!(
            figure.to_json(),
            r#"{"name":"core/limit/1M/1w","value":126.2500,"unit":"Mpps","low":126.2500,"high":126.2500}"#
        );
        assert_eq!(figure.to_string(), "126 Mpps");
    }
}
