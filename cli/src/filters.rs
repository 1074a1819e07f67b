//! The options that say which sessions and mappings are meant.

use clap::Args;
use engine::control::filter::{Filter, Pattern, ProtocolName, StateName};
use serde::de::DeserializeOwned;

/// Endpoints, protocol and age: what sessions and mappings have.
#[derive(Args, Clone, Debug, Default)]
pub struct CommonFilters {
    /// Only with this internal endpoint
    #[arg(long, value_name = "ADDRESS[:PORT]|PREFIX")]
    pub internal: Option<Pattern>,
    /// Only with this external endpoint
    #[arg(long, value_name = "ADDRESS[:PORT]|PREFIX")]
    pub external: Option<Pattern>,
    /// Only where this is any of the endpoints
    #[arg(long, value_name = "ADDRESS[:PORT]|PREFIX")]
    pub address: Option<Pattern>,
    /// Only where any endpoint has this port, or ICMP identifier
    #[arg(long)]
    pub port: Option<u16>,
    /// Only this protocol: tcp, udp or icmp
    #[arg(long, value_parser = word::<ProtocolName>)]
    pub protocol: Option<ProtocolName>,
    /// Only if made longer ago than this, as in 30s, 5m, 2h, 1d
    #[arg(long, value_name = "TIME", value_parser = parse_age_s)]
    pub older_than: Option<u64>,
    /// Only if made later than this long ago
    #[arg(long, value_name = "TIME", value_parser = parse_age_s)]
    pub younger_than: Option<u64>,
}

impl CommonFilters {
    /// As a request has it.
    pub fn filter(&self) -> Filter {
        Filter {
            internal: self.internal,
            external: self.external,
            address: self.address,
            port: self.port,
            protocol: self.protocol,
            older_than_s: self.older_than,
            younger_than_s: self.younger_than,
            ..Filter::default()
        }
    }
}

/// What sessions have.
#[derive(Args, Clone, Debug, Default)]
pub struct SessionFilters {
    /// What mappings have, too.
    #[command(flatten)]
    pub common: CommonFilters,
    /// Only with this remote endpoint
    #[arg(long, value_name = "ADDRESS[:PORT]|PREFIX")]
    pub remote: Option<Pattern>,
    /// Only TCP in this state: init, init-outside, syn-seen, established, initiator-fin,
    /// responder-fin, closing, reset; half-open is both of init-outside and syn-seen
    #[arg(long, value_parser = word::<StateName>)]
    pub state: Option<StateName>,
}

impl SessionFilters {
    /// As a request has it.
    pub fn filter(&self) -> Filter {
        Filter {
            remote: self.remote,
            state: self.state,
            ..self.common.filter()
        }
    }
}

/// A word that the protocol knows.
///
/// # Errors
/// It is none; names those that are.
pub fn word<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|error| error.to_string())
}

/// A time in seconds as an operator writes it.
///
/// # Errors
/// It is none; names the value and shows how.
pub fn parse_age_s(text: &str) -> Result<u64, String> {
    let units = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)];
    let parsed = units.into_iter().find_map(|(unit, seconds)| {
        let number = text.strip_suffix(unit)?.parse::<u32>().ok()?;
        Some(u64::from(number) * seconds)
    });
    parsed.ok_or_else(|| format!("{text:?} is no time; write a number and s, m, h or d, as in 90s"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        for (text, seconds) in [("90s", 90), ("5m", 300), ("2h", 7200), ("1d", 86_400)] {
            assert_eq!(parse_age_s(text), Ok(seconds));
        }
        for bad in ["", "s", "90", "-1s", "1.5h", "1w", "5 s", "99999999999s"] {
            let error = parse_age_s(bad).expect_err(bad);
            assert!(
                error.contains(&format!("{bad:?}")) && error.contains("90s"),
                "{error}"
            );
        }
    }

    #[test]
    fn words_are_those_of_the_protocol() {
        assert_eq!(word::<ProtocolName>("udp"), Ok(ProtocolName::Udp));
        assert_eq!(word::<StateName>("half-open"), Ok(StateName::HalfOpen));
        let error = word::<StateName>("open").expect_err("there is none");
        assert!(
            error.contains("`open`") && error.contains("`established`"),
            "{error}"
        );
    }
}
