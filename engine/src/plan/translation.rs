//! How flows are translated: the rules, pools and services of a configuration as conntrack takes them.
//! Does not depend on the host.

use conntrack::{
    Action, FlowTimers, MappingBehaviour, Pairing, Profile, Protocol, RULE_ENTRIES_MAX, Rule,
    Rules, Service, TIMER_SETS, TimerSets, Timers,
};

use crate::config::{
    At, Config, PortRange, Problem, RuleAction, RuleConfig, ServiceConfig, TranslateConfig,
};

/// How flows are translated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translation {
    /// How flows are translated that no rule fits.
    pub profile: Profile,
    /// How others are, from number 1 on.
    pub others: Vec<Profile>,
    /// Which flows.
    pub rules: Rules,
    /// The timers of all.
    pub timers: TimerSets,
}

/// The sets of timers of the policy in force, and whether every session has its number of them.
#[derive(Clone, Copy, Debug)]
pub struct Earlier<'a> {
    /// The sets.
    pub timers: &'a TimerSets,
    /// Is the policy in the tables everywhere?
    pub settled: bool,
}

impl Translation {
    /// What a configuration says of flows, after the policy that is in force, if there is one.
    ///
    /// # Errors
    /// There are too many prefixes in its rules, or too many different timers.
    pub fn of(config: &Config, earlier: Option<Earlier<'_>>) -> Result<Translation, Problem> {
        let mut ways: Vec<Way> = vec![Way::default_of(config)];
        let number_of = |rule: &RuleConfig| match &rule.action {
            RuleAction::Translate(translate) => {
                let way = Way::of(config, translate);
                let known = ways.iter().position(|known| *known == way);
                let number = known.unwrap_or_else(|| {
                    ways.push(way);
                    ways.len() - 1
                });
                Action::Translate(number as u16)
            }
            RuleAction::Bypass => Action::Bypass,
            RuleAction::Drop => Action::Drop,
        };
        let actions: Vec<Action> = config.rules.iter().map(number_of).collect();
        let rules = config.rules.iter().zip(actions);
        let rules = rules.map(|(rule, action)| entered(rule, action)).collect();
        let rules = Rules::new(rules).map_err(|too_many| {
            let rule = config.rules.get(too_many.rule);
            let what = "the rules name too many pairs of prefixes";
            let why = format!(
                "each source of a rule with each of its destinations is an entry, and there is room \
                 for {RULE_ENTRIES_MAX}; with this rule there are more"
            );
            let fix = "name wider prefixes, or leave out the sources or destinations of some";
            let problem = Problem::error("too-many", what).why(why).fix(fix);
            problem.at(rule.map(|rule| rule.span))
        })?;
        let (timers, profiles) = numbered(config, &ways, earlier)?;
        let mut profiles = profiles.into_iter();
        Ok(Translation {
            profile: profiles.next().expect("the default's is the first way"),
            others: profiles.collect(),
            rules,
            timers,
        })
    }
}

/// A profile whose timers have no numbers yet.
#[derive(Clone, PartialEq)]
struct Way {
    profile: Profile,
    timers: Timers,
}

impl Way {
    fn default_of(config: &Config) -> Way {
        let nat = &config.nat;
        let mapping = nat.mapping.map(|at| at.value);
        Way {
            profile: Profile {
                pool: 0,
                mapping,
                filtering: nat.filtering.map(|at| at.value),
                pairing: pairing(config, 0, mapping),
                preserve_port: nat.preserve_port,
                preserve_port_class: nat.preserve_port_class,
                preserve_port_parity: nat.preserve_port_parity,
                timers: FlowTimers::default(),
            },
            timers: config.timers,
        }
    }

    fn of(config: &Config, translate: &TranslateConfig) -> Way {
        let name = translate.pool.as_ref();
        // Names were checked.
        let pool = name.and_then(|name| config.pool_number(&name.value));
        let pool = pool.unwrap_or(0);
        let mapping = translate.mapping.map(|at| at.value);
        let default = Way::default_of(config);
        Way {
            profile: Profile {
                pool,
                mapping,
                filtering: translate.filtering.map(|at| at.value),
                pairing: pairing(config, pool, mapping),
                ..default.profile
            },
            timers: translate.timers.of(default.timers),
        }
    }
}

/// What a flow gets when its paired address has no port left (RFC 7857 section 4). `eim` is chosen for
/// hosts that are known by their external endpoints; with `edm` room is what counts, but of a pool that
/// a rule names it is that a source is always seen by the same address.
fn pairing(config: &Config, pool: u16, mapping: [MappingBehaviour; 3]) -> [Pairing; 3] {
    let given = config.all_pools().find(|&(number, _)| number == pool);
    let given = given.and_then(|(_, pool)| pool.pairing);
    mapping.map(|mapping| {
        given.unwrap_or(match mapping {
            MappingBehaviour::EndpointDependent if pool == 0 => Pairing::Soft,
            _ => Pairing::Hard,
        })
    })
}

fn entered(rule: &RuleConfig, action: Action) -> Rule {
    let any = rule.protocols.is_empty();
    let fits = |protocol| any || rule.protocols.iter().any(|at| at.value == protocol);
    Rule {
        sources: rule.sources.iter().map(|at| at.value).collect(),
        destinations: rule.destinations.iter().map(|at| at.value).collect(),
        ports: rule.ports.iter().map(|at| (at.first, at.last)).collect(),
        protocols: Protocol::ALL.map(fits),
        action,
    }
}

/// Gives the timers of all ways, and of their services, numbers.
fn numbered(
    config: &Config,
    ways: &[Way],
    earlier: Option<Earlier<'_>>,
) -> Result<(TimerSets, Vec<Profile>), Problem> {
    let services: Vec<(&ServiceConfig, &At<PortRange>)> = config
        .services
        .iter()
        .flat_map(|service| service.ports.iter().map(move |ports| (service, ports)))
        .collect();
    let mut wanted = Vec::new();
    for way in ways {
        wanted.push(way.timers);
        wanted.extend(
            services
                .iter()
                .map(|(service, _)| service.timers.of(way.timers)),
        );
    }
    let first = TimerSets::from(config.timers);
    let Earlier { timers, settled } = earlier.unwrap_or(Earlier {
        timers: &first,
        settled: true,
    });
    let numbered = timers.following(settled, config.timers, &wanted);
    let (sets, numbers) = numbered.map_err(|_| too_many_timers(config, earlier.is_some()))?;
    let numbers = numbers.chunks_exact(1 + services.len());
    let profiles = ways.iter().zip(numbers).map(|(way, numbers)| {
        let of_ports = services.iter().zip(&numbers[1..]);
        let mut services: Vec<Service> = of_ports
            .map(|((service, ports), &timers)| Service {
                protocol: service.protocol,
                first: ports.first,
                last: ports.last,
                timers,
            })
            .collect();
        services.sort_by_key(|service| (service.protocol.index(), service.first));
        Profile {
            timers: FlowTimers {
                base: numbers[0],
                services,
            },
            ..way.profile.clone()
        }
    });
    Ok((sets, profiles.collect()))
}

fn too_many_timers(config: &Config, live: bool) -> Problem {
    let what = "there are too many different timers in [[rules]] and [[services]]";
    let room = TIMER_SETS - 1;
    let (why, fix) = match live {
        true => (
            format!(
                "sessions may still have those of the configuration in force, and there is room for \
                 {room} beside [timers] in all"
            ),
            "try again in some seconds, or with fewer different ones, or restart",
        ),
        false => (
            format!("there is room for {room} beside [timers]; a service counts once for each"),
            "use the same timers in several rules",
        ),
    };
    let span = config.services.first().map(|service| service.span);
    let span = span.or(config.rules.first().map(|rule| rule.span));
    let problem = Problem::error("too-many", what).why(why);
    problem.fix(fix).at(span)
}
