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
const PAIRS: [(Rival, Rival); 7] = [
    (Rival::Forward, Rival::Nft),
    (Rival::XdpForward, Rival::Nft),
    (Rival::XdpForward, Rival::XskRsForward),
    (Rival::EgretXdp, Rival::Nft),
    (Rival::EgretXdp, Rival::XdpForward),
    (Rival::EgretTun, Rival::Nft),
    (Rival::EgretTun, Rival::EgretXdp),
];

/// The values of one contender in one test, round by round.
#[derive(Clone, Debug)]
struct Series {
    test: String,
    unit: &'static str,
    rival: Rival,
    /// The number of each round in which it could be measured, and the value.
    values: Vec<(u32, f64)>,
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

    /// Takes the readings of a contender in a round.
    pub fn add(&mut self, round: u32, rival: Rival, readings: Vec<Reading>) {
        for Reading { test, unit, value } in readings {
            let known = |series: &&mut Series| series.rival == rival && series.test == test;
            match self.series.iter_mut().find(known) {
                Some(series) => series.values.push((round, value)),
                None => self.series.push(Series {
                    test,
                    unit,
                    rival,
                    values: vec![(round, value)],
                }),
            }
        }
    }

    /// Medians and spreads, then the ratios of rounds of the same number.
    pub fn figures(&self) -> Vec<Figure> {
        let measured = self.series.iter().filter_map(|series| {
            let name = self.name(&series.test, &series.rival.name());
            let values = series.values.iter().map(|&(_, value)| value);
            Figure::of(name, series.unit, values.collect())
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
        let ratios = series.values.iter().filter_map(|(round, value)| {
            let same = base.values.iter().find(|(other, _)| other == round);
            let (_, base) = same.filter(|(_, base)| *base != 0.0)?;
            Some(value / base)
        });
        let ratios = ratios.collect();
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
        for (round, nft, egret) in [(0, 1.0, 2.0), (1, 2.0, 3.0), (2, 4.0, 4.0)] {
            rounds.add(round, Rival::Nft, vec![Reading::new("t", "Mpps", nft)]);
            rounds.add(
                round,
                Rival::EgretXdp,
                vec![Reading::new("t", "Mpps", egret)],
            );
        }
        // In this one the other could not be measured.
        rounds.add(3, Rival::EgretXdp, vec![Reading::new("t", "Mpps", 3.0)]);
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
        rounds.add(0, Rival::Nft, vec![Reading::new("t", "us", 0.0)]);
        rounds.add(0, Rival::Forward, vec![Reading::new("t", "us", 1.0)]);
        assert_eq!(rounds.figures().len(), 2);
    }
}
