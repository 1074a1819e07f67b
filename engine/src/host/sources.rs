//! Rules of the host that translate sources, in words, read from the text of `nft -j list ruleset`
//! and `iptables-save`.

use serde_json::Value;

/// Each rule with a `masquerade` or `snat`, best effort: in nft by its place, in iptables as it is
/// written.
pub fn source_rules(nft: &str, iptables: &str) -> Vec<String> {
    let document: Value = serde_json::from_str(nft).unwrap_or_default();
    let objects = document["nftables"].as_array().into_iter().flatten();
    let mut found: Vec<String> = objects.filter_map(nft_rule).collect();
    let lines = iptables.lines().map(str::trim);
    let translates = |line: &&str| {
        let words = line.split_whitespace().collect::<Vec<_>>();
        let mut pairs = words.windows(2);
        line.starts_with("-A ")
            && pairs
                .any(|pair| pair[0] == "-j" && ["MASQUERADE", "SNAT", "NETMAP"].contains(&pair[1]))
    };
    found.extend(
        lines
            .filter(translates)
            .map(|line| format!("iptables {line}")),
    );
    found
}

/// What `iptables-nft` made is an `xt` expression, which `iptables-save` shows better.
fn nft_rule(object: &Value) -> Option<String> {
    let rule = &object["rule"];
    let expressions = rule["expr"].as_array()?.iter();
    let kind = expressions
        .flat_map(|one| one.as_object().into_iter().flatten())
        .map(|(kind, _)| kind.as_str())
        .find(|kind| ["masquerade", "snat"].contains(kind))?;
    let part = |name: &str| rule[name].as_str().unwrap_or("?").to_owned();
    let place = [part("family"), part("table"), part("chain")].join(" ");
    Some(format!("nft {place}: {kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_translate_sources() {
        let nft = r#"{"nftables": [
            {"chain": {"family": "ip", "table": "nat", "name": "post"}},
            {"rule": {"family": "ip", "table": "nat", "chain": "post", "expr": [
                {"match": {"op": "==", "left": {"meta": {"key": "oifname"}}, "right": "eth0"}},
                {"masquerade": null}]}},
            {"rule": {"family": "ip", "table": "nat", "chain": "post", "expr": [
                {"xt": {"type": "target", "name": "MASQUERADE"}}]}},
            {"rule": {"family": "ip", "table": "nat", "chain": "pre", "expr": [{"dnat": {}}]}}]}"#;
        let iptables = "*nat\n:POSTROUTING ACCEPT [0:0]\n\
            -A POSTROUTING -s 10.42.0.0/16 -o eth0 -j MASQUERADE\n\
            -A PREROUTING -p tcp --dport 80 -j DNAT --to 10.0.0.1\nCOMMIT\n";
        let wanted = [
            "nft ip nat post: masquerade",
            "iptables -A POSTROUTING -s 10.42.0.0/16 -o eth0 -j MASQUERADE",
        ];
        assert_eq!(source_rules(nft, iptables), wanted);
        assert_eq!(source_rules("", ""), [""; 0]);
        assert_eq!(source_rules("nonsense", "-j"), [""; 0]);
    }
}
