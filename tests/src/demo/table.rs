//! What the demo prints in the end. Every figure of the transactions and of the way home is one
//! the checker recomputed from bitcoind.

use std::fmt::Display;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};

use super::books::{Books, Party};
use super::checker::{Audit, Payer};
use super::progress::Done;
use super::published::Published;

/// What happened, step by step.
pub fn steps(done: &[Done]) -> String {
    let mut table = styled(["", "step", "what came of it", "height", "s"], &[0, 3, 4]);
    for (index, it) in done.iter().enumerate() {
        let took = format!("{:.1}", it.took.as_secs_f32());
        let number = (index + 1).to_string();
        table.add_row([&number, &it.what, &it.result, &it.height.to_string(), &took]);
    }
    titled("What happened", &table)
}

/// Payments and balances.
pub fn balances(books: &Books, names: &[String]) -> String {
    let name = |party: Party| match party {
        Party::Member(index) => names[index].clone(),
        Party::Outside => "outside node".to_owned(),
        Party::Lsp => "LSP".to_owned(),
    };
    let titles = ["payment", "from", "to", "amount msat", "routing fee msat"];
    let mut payments = styled(titles, &[0, 3, 4]);
    for (index, it) in books.payments.iter().enumerate() {
        payments.add_row([
            (index + 1).to_string(),
            name(it.from),
            name(it.to),
            thousands(it.amount_msat),
            thousands(it.fee_msat),
        ]);
    }
    let titles = ["in channels", "before msat", "after msat", "change msat"];
    let mut held = styled(titles, &[1, 2, 3]);
    for it in &books.held {
        let sign = if it.after_msat < it.before_msat {
            "-"
        } else {
            "+"
        };
        let change = thousands(it.after_msat.abs_diff(it.before_msat));
        let after = thousands(it.after_msat);
        let change = format!("{sign}{change}");
        held.add_row([name(it.party), thousands(it.before_msat), after, change]);
    }
    let all = titled("Payments (they add up to the millisatoshi)", &payments);
    format!("{all}\n{held}\n")
}

/// The transactions of a member's way home.
pub fn transactions(audit: &Audit, name: &str) -> String {
    let titles = [
        "transaction",
        "block",
        "vbytes",
        "fee sat",
        "anchor sat",
        "paid by",
        "txid",
    ];
    let mut table = styled(titles, &[1, 2, 3, 4]);
    for it in &audit.transactions {
        table.add_row([
            it.name.clone(),
            it.height.to_string(),
            thousands(it.vsize),
            thousands(it.fee.to_sat()),
            it.anchor.to_sat().to_string(),
            payer(it.payer).to_owned(),
            it.txid.to_string(),
        ]);
    }
    let sum = |payer| thousands(audit.paid_by(payer).to_sat());
    let lsp = format!("{} sat by the LSP", sum(Payer::Lsp));
    let member = format!("{} sat by the member", sum(Payer::Member));
    let sizes: u64 = audit.transactions.iter().skip(1).map(|it| it.vsize).sum();
    format!(
        "{}Fees and anchors: {lsp}, {member}. The way home: {} vbytes in {} blocks.\n",
        titled(
            &format!("{name}'s way home (recomputed from bitcoind)"),
            &table
        ),
        thousands(sizes),
        thousands(audit.blocks().into()),
    )
}

/// Where the member's money went, line by line.
pub fn way_home(audit: &Audit, said: &Published, name: &str) -> String {
    let mut table = styled(["", "sat", "note"], &[1]);
    let mut row = |what: String, amount: String, note: &str| {
        table.add_row([what, amount, note.to_owned()]);
    };
    let sat = |amount: bitcoin::Amount| thousands(amount.to_sat());
    let msat = |msat: u64| format!("{}.{:03}", thousands(msat / 1_000), msat % 1_000);
    let balance = msat(said.member_msat);
    row(
        format!("{name} in the channel, before"),
        balance,
        "the wallet's word",
    );
    row(
        "  of it reserve".to_owned(),
        msat(audit.reserve_msat),
        "not spendable there, but it comes home",
    );
    row(
        "- part of a satoshi".to_owned(),
        format!("0.{:03}", said.member_msat % 1_000),
        "to the miner",
    );
    row(
        "- trimmed HTLCs".to_owned(),
        "0".to_owned(),
        "none was pending",
    );
    row(
        "- fees of tree and anchors".to_owned(),
        "0".to_owned(),
        "the factory brings them along, paid by the LSP",
    );
    row(
        "- fee of the commitment".to_owned(),
        "0".to_owned(),
        "paid by the LSP's side of the channel",
    );
    row(
        format!("= {name}'s output of the commitment"),
        sat(audit.member_output),
        "on chain",
    );
    row(
        "- fee of the sweep".to_owned(),
        sat(audit.sweep_fee),
        "paid by the member",
    );
    row(
        format!("= in {name}'s own wallet"),
        sat(audit.arrived),
        "on chain",
    );
    row(
        format!("beside it: {name}'s coins before"),
        sat(audit.coins_before),
        "on chain; leaving needs none",
    );
    let lsp = sat(audit.lsp_output);
    row(
        "beside it: the LSP's output".to_owned(),
        lsp,
        "on chain, of the same channel",
    );
    let others = sat(audit.beside_path);
    row(
        "beside it: outputs of others".to_owned(),
        others,
        "other channels, stock, the other branch",
    );
    titled(&format!("{name}'s money"), &table)
}

/// `1234567` as `1,234,567`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn payer(payer: Payer) -> &'static str {
    match payer {
        Payer::Lsp => "LSP",
        Payer::Member => "member",
    }
}

fn styled<const N: usize>(titles: [&str; N], numbers: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(titles);
    for index in numbers {
        if let Some(column) = table.column_mut(*index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn titled(title: &str, body: &impl Display) -> String {
    format!("\n{title}\n{body}\n")
}

#[cfg(test)]
mod tests {
    use super::thousands;

    #[test]
    fn thousands_are_set_apart() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(thousands(number), text);
        }
    }
}
