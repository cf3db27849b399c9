//! Answers as people read them.

use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use serde_json::Value;

/// Columns of a list: title and JSON pointer.
type Columns = &'static [(&'static str, &'static str)];

const FACTORIES: Columns = &[
    ("factory", "/factory"),
    ("phase", "/phase"),
    ("slot", "/seats/0/slot"),
    ("capacity sat", "/seats/0/capacity_sat"),
    ("epoch", "/epoch"),
    ("ends at height", "/expiry"),
    ("exit blocks", "/exit_delay_blocks"),
    ("why it ended", "/ended"),
    ("damage", "/damage"),
];
const TOWERS: Columns = &[
    ("tower", "/uri"),
    ("state", "/state"),
    ("height", "/height"),
    ("kept", "/kept"),
    ("not given yet", "/backlog"),
    ("coins sat", "/coins_sat"),
    ("refused", "/refused"),
    ("our id there", "/client_id"),
];
const PAYMENTS: Columns = &[
    ("payment hash", "/payment_hash"),
    ("direction", "/direction"),
    ("status", "/status"),
    ("amount msat", "/amount_msat"),
    ("fee msat", "/fee_msat"),
];

const CHANNELS: Columns = &[
    ("channel", "/channel"),
    ("capacity sat", "/capacity_sat"),
    ("balance msat", "/balance_msat"),
    ("usable", "/usable"),
];

/// What an answer is about.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// One thing with its properties.
    Object,
    Factories,
    Towers,
    Payments,
    Channels,
    Tree,
    Events,
}

/// An answer as a table, with a line break at its end.
pub(crate) fn table(kind: Kind, answer: &Value) -> String {
    let table = match kind {
        Kind::Object => object(answer),
        Kind::Factories => list(FACTORIES, answer),
        Kind::Towers => list(TOWERS, answer),
        Kind::Payments => list(PAYMENTS, answer),
        Kind::Channels => list(CHANNELS, answer),
        Kind::Tree => tree(answer),
        Kind::Events => events(answer),
    };
    match table {
        Some(table) => format!("{table}\n"),
        None => "none\n".to_owned(),
    }
}

fn object(answer: &Value) -> Option<Table> {
    let properties = answer.as_object().filter(|all| !all.is_empty())?;
    let mut table = styled();
    for (key, value) in properties {
        table.add_row([key.replace('_', " "), text(value)]);
    }
    Some(table)
}

fn list(columns: Columns, answer: &Value) -> Option<Table> {
    let mut table = styled();
    table.set_header(columns.iter().map(|(title, _)| *title));
    for item in rows(answer)? {
        table.add_row(
            columns
                .iter()
                .map(|(_, pointer)| item.pointer(pointer).map_or_else(String::new, text)),
        );
    }
    Some(table)
}

fn tree(answer: &Value) -> Option<Table> {
    let mut table = styled();
    table.set_header([
        "node",
        "under",
        "slots",
        "role",
        "txid",
        "vB",
        "fee sat",
        "delay",
        "outputs sat",
    ]);
    for node in rows(answer)? {
        let first = node["first_slot"].as_u64().unwrap_or_default();
        let last = first + node["slots"].as_u64().unwrap_or(1).saturating_sub(1);
        for tx in node["transactions"].as_array().into_iter().flatten() {
            table.add_row([
                text(&node["node"]),
                text(&node["parent"]),
                format!("{first}-{last}"),
                text(&tx["role"]),
                text(&tx["txid"]),
                text(&tx["vsize"]),
                text(&tx["fee_sat"]),
                text(&tx["delay_blocks"]),
                text(&tx["outputs_sat"]),
            ]);
        }
    }
    Some(table)
}

fn events(answer: &Value) -> Option<Table> {
    let mut table = styled();
    table.set_header(["cursor", "event", "details"]);
    for stored in rows(&answer["events"])? {
        let event = stored["event"].as_object()?;
        let details = event.iter().filter(|(key, _)| *key != "type");
        let details = details.map(|(key, value)| format!("{key} {}", text(value)));
        table.add_row([
            text(&stored["cursor"]),
            event.get("type").map_or_else(String::new, text),
            details.collect::<Vec<_>>().join(", "),
        ]);
    }
    Some(table)
}

fn rows(answer: &Value) -> Option<&Vec<Value>> {
    answer.as_array().filter(|rows| !rows.is_empty())
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(", "),
        Value::Object(properties) => {
            let properties = properties.iter();
            let shown = properties.map(|(key, value)| format!("{key} {}", text(value)));
            shown.collect::<Vec<_>>().join(", ")
        }
        Value::Number(number) => number.to_string(),
    }
}

fn styled() -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_value_finds_its_place() {
        let balance = json!({"spendable_msat": 12, "onchain_sat": 3});
        let shown = table(Kind::Object, &balance);
        assert!(
            shown.contains("spendable msat") && shown.contains("12"),
            "{shown}"
        );

        let factories = json!([{"factory": "ab", "phase": "active", "ended": null, "epoch": "0/3",
            "seats": [{"slot": 2, "capacity_sat": 500000}]}]);
        let shown = table(Kind::Factories, &factories);
        assert!(shown.contains("500000") && shown.contains("0/3"), "{shown}");

        let tree = json!([{"node": 0, "parent": null, "first_slot": 0, "slots": 4, "transactions":
            [{"role": "kickoff", "txid": "cd", "outputs_sat": [7, 240]}]}]);
        let shown = table(Kind::Tree, &tree);
        assert!(shown.contains("0-3") && shown.contains("7, 240"), "{shown}");

        let events = json!({"events": [{"cursor": 9, "event":
            {"type": "payment_received", "payment_hash": "ef", "amount_msat": 5}}], "gap": false});
        let shown = table(Kind::Events, &events);
        assert!(
            shown.contains("payment_received") && shown.contains("amount_msat 5"),
            "{shown}"
        );

        assert_eq!(table(Kind::Payments, &json!([])), "none\n");
    }
}
