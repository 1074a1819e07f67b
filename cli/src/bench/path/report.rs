//! What the reader sees: conditions and progress on standard error, the table on standard output.

use benches::figure::Figure;
use comfy_table::{CellAlignment, Table, presets};

use super::choice::{Flows, Rival, Test};
use super::measure::LOSS_MAX;
use super::pin::{GATEWAY_CORE, SENDER_CORE};
use super::rounds::Reading;
use crate::lab::LabError;

/// The load average of a machine that does nothing else.
const QUIET_MAX: f64 = 0.7;

/// Says under which conditions the figures hold.
pub fn conditions(receive_on_sender_core: bool) {
    let receives = if receive_on_sender_core {
        format!("receives on the sender's core {SENDER_CORE}, works on core {GATEWAY_CORE}")
    } else {
        format!("receives (threaded NAPI) and works on core {GATEWAY_CORE}")
    };
    eprintln!(
        "egret bench path: generator on core {SENDER_CORE}; the gateway {receives}. The sink is tc \
         ingress of the server's veth, for all contenders: no XDP program is on that veth. A rate \
         without loss is one with at most {LOSS_MAX} of the packets lost."
    );
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let others = load.split(' ').next().and_then(|word| word.parse().ok());
    if others.is_some_and(|others: f64| others > QUIET_MAX) {
        eprintln!(
            "egret bench path: this machine is busy with something else (load {}): expect lower \
             figures and a wide spread",
            others.unwrap_or_default()
        );
    }
}

/// Says what one contender's turn came to.
pub fn progress(
    test: Test,
    flows: Option<Flows>,
    rival: Rival,
    counts: bool,
    readings: &[Reading],
) {
    let flows = flows.map(Flows::name).unwrap_or_default();
    let values: Vec<String> = readings
        .iter()
        .map(|reading| format!("{} {:.4} {}", reading.test, reading.value, reading.unit))
        .collect();
    let kind = if counts { "" } else { " (warm-up)" };
    let (test, rival) = (test.name(), rival.name());
    eprintln!("{test} {flows} {rival}{kind}: {}", values.join(", "));
}

/// Says what one contender's turn failed at.
pub fn failure(test: Test, flows: Option<Flows>, error: &LabError) {
    let flows = flows.map(Flows::name).unwrap_or_default();
    eprintln!("FAILED {} {flows} {error}", test.name());
}

/// All figures, one a row.
pub fn table(figures: &[Figure]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["figure", "median", "lowest", "highest"]);
    for figure in figures {
        table.add_row([
            figure.name.clone(),
            figure.to_string(),
            format!("{:.3}", figure.low),
            format!("{:.3}", figure.high),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_has_its_row() {
        let figure = |name: &str| Figure::of(name, "Mpps", vec![0.5, 0.25]).unwrap();
        let text = table(&[figure("path/a/1k/nft"), figure("path/b/1k/nft")]).to_string();
        assert!(
            text.contains("path/a/1k/nft") && text.contains("path/b/1k/nft"),
            "{text}"
        );
        assert!(
            text.contains("0.375 Mpps") && text.contains("0.250"),
            "{text}"
        );
    }
}
