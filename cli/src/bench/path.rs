//! `egret bench path`: gateways side by side, on veth pairs and the real kernel.
//!
//! One stage, one generator and one sink for all contenders, in turn: A B C, A B C, ... The first
//! round warms up and does not count. A contender has one core, and everything that sends, receives
//! and counts has the other one, so its figures are those of one core.

mod choice;
mod conntrack;
mod contender;
mod load;
mod measure;
mod pin;
mod program;
mod report;
mod rounds;
mod sender;
mod sink;
mod stage;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use benches::figure::Figure;
use clap::{Args, ValueEnum};

use super::output::{OutputArgs, OutputError};
use crate::demo::root::become_root;
use crate::lab::LabError;
use crate::lab::owner::{clean_up_on_signals, remove_leftovers};
pub use choice::{Flows, Rival, Test};
use measure::Bench;
use rounds::Rounds;
use stage::Stage;

/// The command, in messages and on the page of results.
const NAME: &str = "egret bench path";

/// What to measure, and how long.
#[derive(Clone, Debug, Args)]
pub struct PathArgs {
    /// Only these tests
    #[arg(long, value_enum, value_delimiter = ',', value_name = "TEST")]
    tests: Vec<Test>,
    /// Only these contenders
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAME")]
    contenders: Vec<Rival>,
    /// Only these numbers of flows
    #[arg(long, value_enum, value_delimiter = ',', value_name = "COUNT")]
    flows: Vec<Flows>,
    /// Rounds that count; one more goes before them to warm up
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long one measurement takes
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Only see that everything works: one round of 0.3 s with 1k flows, and no warm-up
    #[arg(long, conflicts_with_all = ["tests", "flows", "rounds", "seconds"])]
    quick: bool,
    /// The gateway receives on the sender's core (as without NAPI threads) and works on its own
    #[arg(long)]
    receive_on_sender_core: bool,
    #[command(flatten)]
    output: OutputArgs,
    /// Run this in place of `egret` as the gateway
    #[arg(long, value_name = "FILE")]
    gateway_program: Option<PathBuf>,
}

/// The length of a measurement.
fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=60.0).contains(&seconds) => Ok(seconds),
        _ => Err("0.1 to 60 seconds".to_owned()),
    }
}

/// What to measure, decided.
#[derive(Clone, Debug, PartialEq)]
struct Agenda {
    tests: Vec<Test>,
    rivals: Vec<Rival>,
    flows: Vec<Flows>,
    rounds: u32,
    /// Rounds before those that count.
    warm_up: u32,
    length: Duration,
    receive_on_sender_core: bool,
}

impl Agenda {
    fn of(arguments: &PathArgs) -> Agenda {
        fn or_all<T: ValueEnum>(chosen: &[T]) -> Vec<T> {
            if chosen.is_empty() {
                T::value_variants()
            } else {
                chosen
            }
            .to_vec()
        }
        let rivals = or_all(&arguments.contenders);
        if arguments.quick {
            return Agenda {
                tests: vec![Test::Udp64Overload, Test::NewSessions],
                rivals,
                flows: vec![Flows::Thousand],
                rounds: 1,
                warm_up: 0,
                length: Duration::from_millis(300),
                receive_on_sender_core: arguments.receive_on_sender_core,
            };
        }
        Agenda {
            tests: or_all(&arguments.tests),
            rivals,
            flows: or_all(&arguments.flows),
            rounds: arguments.rounds,
            warm_up: 1,
            length: Duration::from_secs_f64(arguments.seconds),
            receive_on_sender_core: arguments.receive_on_sender_core,
        }
    }

    /// Every test with each number of flows that makes a difference to it.
    fn items(&self) -> Vec<(Test, Option<Flows>)> {
        let mut items = Vec::new();
        for &test in &self.tests {
            let choices = test.flow_choices();
            if choices.is_empty() {
                items.push((test, None));
            }
            let chosen = self.flows.iter().filter(|flows| choices.contains(flows));
            items.extend(chosen.map(|&flows| (test, Some(flows))));
        }
        items
    }
}

/// Measures and prints; 0, 1 if a measurement failed, 2 if nothing could be measured.
pub fn run(arguments: PathArgs) -> ExitCode {
    if let Err(message) = check_built(&arguments.contenders) {
        eprintln!("{NAME}: {message}");
        return ExitCode::from(2);
    }
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("egret"));
    if let Err(message) = become_root("bench path", &program, std::env::args_os().skip(1)) {
        eprintln!("egret bench path: {message}");
        return ExitCode::from(2);
    }
    let program = arguments.gateway_program.clone().unwrap_or(program);
    match compare_and_tell(&arguments, program) {
        Ok(failed) => ExitCode::from(u8::from(failed)),
        Err(error) => {
            eprintln!("{NAME}: could not be run: {error}");
            ExitCode::from(2)
        }
    }
}

/// Are the contenders that were asked for by name in this build?
fn check_built(chosen: &[Rival]) -> Result<(), String> {
    match chosen
        .iter()
        .find_map(|rival| Some((rival, rival.left_out()?)))
    {
        Some((rival, why)) => Err(format!("{}: {why}", rival.name())),
        None => Ok(()),
    }
}

/// Why there are no figures, or they could not be written.
#[derive(Debug, thiserror::Error)]
enum PathError {
    #[error(transparent)]
    Measure(#[from] LabError),
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// Did a measurement fail?
fn compare_and_tell(arguments: &PathArgs, program: PathBuf) -> Result<bool, PathError> {
    let output = &arguments.output;
    output.prepare(NAME)?;
    let told = |figures: &[Figure]| figures.iter().for_each(|figure| output.tell(figure));
    let outcome = compare(&Agenda::of(arguments), program, told)?;
    if !output.json {
        println!("{}", report::table(&outcome.figures));
    }
    output.write(NAME, &outcome.figures)?;
    Ok(outcome.failed)
}

/// What all measurements came to.
#[derive(Clone, Debug, Default)]
struct Outcome {
    figures: Vec<Figure>,
    /// At least one measurement failed, and was told about.
    failed: bool,
}

/// Measures; calls `tell` with the figures of each test when it is over, and returns all of them.
fn compare(
    agenda: &Agenda,
    program: PathBuf,
    tell: impl Fn(&[Figure]),
) -> Result<Outcome, LabError> {
    clean_up_on_signals()?;
    for name in remove_leftovers(stage::PREFIX) {
        eprintln!("removed the namespaces {name} of an earlier run");
    }
    pin::check_cores()?;
    let stage = Stage::build()?;
    report::conditions(agenda.receive_on_sender_core);
    pin::watch()?;
    let mut bench = Bench::open(stage, program, agenda)?;
    let mut outcome = Outcome::default();
    for (test, flows) in agenda.items() {
        if !measure::can_measure(test, agenda.receive_on_sender_core) {
            continue;
        }
        let (rounds, failed) = measure_rounds(agenda, &mut bench, test, flows);
        let figures = rounds.figures();
        tell(&figures);
        outcome.figures.extend(figures);
        outcome.failed |= failed;
    }
    Ok(outcome)
}

/// All rounds of one test, the contenders in turn; also whether a measurement failed.
fn measure_rounds(
    agenda: &Agenda,
    bench: &mut Bench,
    test: Test,
    flows: Option<Flows>,
) -> (Rounds, bool) {
    let rivals = agenda.rivals.iter().copied();
    let rivals: Vec<Rival> = rivals
        .filter(|&rival| rival.ability() >= test.needs() && bench.can_run(rival))
        .collect();
    let mut rounds = Rounds::new(flows.map_or("0".to_owned(), Flows::name));
    let mut failed = false;
    for round in 0..agenda.warm_up + agenda.rounds {
        let counts = round >= agenda.warm_up;
        for &rival in &rivals {
            match bench.measure(test, flows, rival) {
                Ok(readings) => {
                    report::progress(test, flows, rival, counts, &readings);
                    if counts {
                        rounds.add(round, rival, readings);
                    }
                }
                Err(error) => {
                    failed = true;
                    report::failure(test, flows, &error);
                }
            }
        }
    }
    (rounds, failed)
}

#[cfg(test)]
mod tests {
    use clap::{Parser, error::ErrorKind};

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        arguments: PathArgs,
    }

    fn agenda(words: &[&str]) -> Agenda {
        let words = ["path"].iter().chain(words);
        Agenda::of(&Line::try_parse_from(words).unwrap().arguments)
    }

    #[test]
    fn without_options_everything_is_measured() {
        let agenda = agenda(&[]);
        assert_eq!(agenda.tests.len(), 10);
        assert_eq!(
            (agenda.rivals.len(), agenda.rounds, agenda.warm_up),
            (6, 3, 1)
        );
        // Four tests depend on the number of flows, six do not.
        assert_eq!(agenda.items().len(), 4 * 3 + 6);
    }

    #[test]
    fn lists_choose_and_keep_their_order() {
        let agenda = agenda(&[
            "--tests=cpu,tcp-1",
            "--contenders=egret-xdp,nft",
            "--flows=1M,1k",
        ]);
        assert_eq!(agenda.rivals, [Rival::EgretXdp, Rival::Nft]);
        assert_eq!(
            agenda.items(),
            [
                (Test::Cpu, Some(Flows::Million)),
                (Test::Cpu, Some(Flows::Thousand)),
                (Test::Tcp1, None)
            ]
        );
    }

    #[test]
    fn who_is_not_built_is_refused_by_name_only() {
        assert_eq!(check_built(&[]), Ok(()));
        assert_eq!(check_built(&[Rival::Nft, Rival::EgretXdp]), Ok(()));
        let asked = check_built(&[Rival::Nft, Rival::XskRsForward]);
        if cfg!(feature = "xsk-rs") {
            assert_eq!(asked, Ok(()));
        } else {
            let message = asked.unwrap_err();
            assert!(message.starts_with("xsk-rs-forward: "), "{message}");
            assert!(message.contains("--features xsk-rs"), "{message}");
            assert!(message.contains("libelf-dev"), "{message}");
        }
    }

    #[test]
    fn the_quick_form_is_short() {
        let agenda = agenda(&["--quick"]);
        assert_eq!(
            (agenda.rounds, agenda.warm_up, agenda.items().len()),
            (1, 0, 2)
        );
        assert!(agenda.length < Duration::from_secs(1));
    }

    #[test]
    fn wrong_words_are_refused_with_what_is_allowed() {
        let refused = |words: &[&str]| {
            let words = ["path"].iter().chain(words);
            Line::try_parse_from(words).unwrap_err()
        };
        let error = refused(&["--tests=udp65"]);
        assert!(error.to_string().contains("udp64-overload"), "{error}");
        assert!(refused(&["--seconds=0"]).to_string().contains("0.1 to 60"));
        assert_eq!(refused(&["--rounds=0"]).kind(), ErrorKind::ValueValidation);
        assert_eq!(
            refused(&["--quick", "--rounds=2"]).kind(),
            ErrorKind::ArgumentConflict
        );
    }
}
