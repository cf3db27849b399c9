//! What the checker asks of a chain, and nothing more: it never asks a program of the demo.

use bitcoin::{Amount, OutPoint, Script, ScriptBuf, Transaction, Txid};
use serde_json::json;
use superscalar_regtest::{RegtestNode, RpcError};

/// A chain as its blocks tell it. What is only in the mempool does not exist.
pub trait Ledger {
    /// A transaction in a block, with the block's height.
    ///
    /// # Errors
    /// When the chain cannot be asked.
    fn transaction(&self, txid: Txid) -> Result<Option<(Transaction, u32)>, RpcError>;

    /// The transaction in a block that spends an output.
    ///
    /// # Errors
    /// When the chain cannot be asked.
    fn spender(&self, outpoint: OutPoint) -> Result<Option<Txid>, RpcError>;

    /// All unspent money at these scripts.
    ///
    /// # Errors
    /// When the chain cannot be asked.
    fn unspent_at(&self, scripts: &[ScriptBuf]) -> Result<Amount, RpcError>;
}

impl Ledger for RegtestNode {
    fn transaction(&self, txid: Txid) -> Result<Option<(Transaction, u32)>, RpcError> {
        let Some(height) = self.confirmed_at(txid)? else {
            return Ok(None);
        };
        Ok(self.raw_tx(txid)?.map(|tx| (tx, height)))
    }

    fn spender(&self, outpoint: OutPoint) -> Result<Option<Txid>, RpcError> {
        let spend = self.spender_of(outpoint)?;
        Ok(spend.filter(|it| it.height.is_some()).map(|it| it.txid))
    }

    fn unspent_at(&self, scripts: &[ScriptBuf]) -> Result<Amount, RpcError> {
        const METHOD: &str = "scantxoutset";
        let raw = |script: &ScriptBuf| format!("raw({})", Script::to_hex_string(script));
        let wanted: Vec<String> = scripts.iter().map(raw).collect();
        let answer = self.call(METHOD, json!(["start", wanted]))?;
        let total = answer["total_amount"].as_number().map(ToString::to_string);
        let total = total.and_then(|text| {
            Amount::from_str_in(&plain_decimal(&text), bitcoin::Denomination::Bitcoin).ok()
        });
        total.ok_or_else(|| RpcError::Unexpected {
            method: METHOD.to_owned(),
            detail: format!("no total in {answer}"),
        })
    }
}

/// A JSON number below 0.0001 comes back as `2.1e-5`, which no amount parser takes.
fn plain_decimal(number: &str) -> String {
    match number.parse::<f64>() {
        // 21 million coins in satoshi need 51 bits: eight places are exact.
        Ok(coins) => format!("{coins:.8}"),
        Err(_) => number.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_large_totals_keep_every_satoshi() {
        assert_eq!(plain_decimal("2.1e-5"), "0.00002100");
        assert_eq!(plain_decimal("20999999.97690001"), "20999999.97690001");
    }
}
