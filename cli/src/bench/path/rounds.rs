//! From the readings of all rounds to figures and ratios.

use benches::figure::Figure;

use super::choice::Rival;

/// One number of one round.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// The test's part of the figure's name, such as `rtt-p50`.
    pub test: String,
    /// What the value counts.
    pub unit: &'static str,
    /// The value.
    pub value: f64,
}

impl Reading {
    /// A reading.
    pub fn new(test: impl Into<String>, unit: &'static str, value: f64) -> Reading {
        Reading {
            test: test.into(),
            unit,
            value,
        }
    }
}

/// Who is compared with whom, round by round.
const PAIRS: [(Rival, Rival); 4] = [
    (Rival::Forward, Rival::Nft),
    (Rival::XdpForward, Rival::Nft),
    (Rival::EgretXdp, Rival::Nft),
    (Rival::EgretXdp, Rival::XdpForward),
];

/// The values of one contender in one test, round by round.
#[derive(Clone, Debug)]
struct Series {
    test: String,
    unit: &'static str,
    rival: Rival,
    values: Vec<f64>,
}

/// The readings of one test.
#[derive(Clone, Debug)]
pub struct Rounds {
    flows: String,
    series: Vec<Series>,
}

impl Rounds {
    /// None yet; `flows` is that part of the figures' names.
    pub fn new(flows: String) -> Rounds {
        Rounds {
            flows,
            series: Vec::new(),
        }
    }

    /// Takes the readings of a contender's next round.
    pub fn add(&mut self, rival: Rival, readings: Vec<Reading>) {
        for Reading { test, unit, value } in readings {
            let known = |series: &&mut Series| series.rival == rival && series.test == test;
            match self.series.iter_mut().find(known) {
                Some(series) => series.values.push(value),
                None => self.series.push(Series {
                    test,
                    unit,
                    rival,
                    values: vec![value],
                }),
            }
        }
    }

    /// Medians and spreads, then the ratios of rounds of the same number.
    pub fn figures(&self) -> Vec<Figure> {
        let measured = self.series.iter().filter_map(|series| {
            let name = self.name(&series.test, &series.rival.name());
            Figure::of(name, series.unit, series.values.clone())
        });
        let ratios = self.series.iter().flat_map(|series| {
            PAIRS
                .iter()
                .filter(|(rival, _)| *rival == series.rival)
                .filter_map(|(_, other)| self.ratio(series, *other))
        });
        measured.chain(ratios).collect()
    }

    /// A contender's values over another's.
    fn ratio(&self, series: &Series, other: Rival) -> Option<Figure> {
        let base = self
            .series
            .iter()
            .find(|base| base.rival == other && base.test == series.test)?;
        let pairs = series.values.iter().zip(&base.values);
        let ratios = pairs
            .filter(|(_, base)| **base != 0.0)
            .map(|(value, base)| value / base)
            .collect();
        let who = format!("{}-vs-{}", series.rival.name(), other.name());
        Figure::of(self.name(&series.test, &who), "ratio", ratios)
    }

    fn name(&self, test: &str, who: &str) -> String {
        format!("path/{test}/{}/{who}", self.flows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_the_same_round() {
        let mut rounds = Rounds::new("64k".to_owned());
        for (nft, egret) in [(1.0, 2.0), (2.0, 3.0), (4.0, 4.0)] {
            rounds.add(Rival::Nft, vec![Reading::new("t", "Mpps", nft)]);
            rounds.add(Rival::EgretXdp, vec![Reading::new("t", "Mpps", egret)]);
        }
        let figures = rounds.figures();
        let names: Vec<&str> = figures.iter().map(|figure| figure.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "path/t/64k/nft",
                "path/t/64k/egret-xdp",
                "path/t/64k/egret-xdp-vs-nft"
            ]
        );
        let ratio = &figures[2];
        assert_eq!(
            (ratio.value, ratio.low, ratio.high, ratio.unit),
            (1.5, 1.0, 2.0, "ratio")
        );
    }

    #[test]
    fn nothing_is_divided_by_zero() {
        let mut rounds = Rounds::new("0".to_owned());
        rounds.add(Rival::Nft, vec![Reading::new("t", "us", 0.0)]);
        rounds.add(Rival::Forward, vec![Reading::new("t", "us", 1.0)]);
        assert_eq!(rounds.figures().len(), 2);
    }
}
