//! What a buyer checks before it signs: the sale is rebuilt from what it holds, and every field it
//! was told is compared with it.

use super::buyer::{Ask, Ground};
use super::{MAX_VALID_BLOCKS, sign};
use crate::message::{MAX_INVOICE_BYTES, Quote, RefusalCode, SaleTerms};
use crate::stock::{Link, StockChain};

/// Why a quote is refused: code and field.
pub(super) type Wrong = (RefusalCode, &'static str);

/// The sale `quote` offers, rebuilt; or the field that is not as asked, or not sound.
pub(super) fn quote(
    ground: &Ground<'_>,
    chain: &StockChain,
    paid: &[[u8; 32]],
    ask: &Ask,
    quote: &Quote,
) -> Result<Link, Wrong> {
    let sale = &quote.sale;
    let asked = |ok: bool, field| match ok {
        true => Ok(()),
        false => Err((RefusalCode::Terms, field)),
    };
    asked(sale.amount == ask.amount, "amount")?;
    asked(
        sale.member_funding_key == ask.funding_key,
        "member_funding_key",
    )?;
    let link = terms(ground, chain, sale)?;
    let free = sale.price_msat == 0;
    let limits = |ok: bool, field| match ok {
        true => Ok(()),
        false => Err((RefusalCode::Limits, field)),
    };
    limits(sale.price_msat <= ask.max_price_msat, "price_msat")?;
    let valid = ground.tip..=ground.tip.saturating_add(2 * MAX_VALID_BLOCKS);
    let ends = sale.valid_until < ground.header.expiry;
    limits(valid.contains(&sale.valid_until) && ends, "valid_until")?;
    let no_hash = sale.payment_hash == [0; 32];
    // Whoever knows the preimage of a hash could take a second payment on its way.
    let repeated = !free && paid.contains(&sale.payment_hash);
    asked(no_hash == free && !repeated, "payment_hash")?;
    let length = quote.invoice.len();
    asked(
        (length == 0) == free && length <= MAX_INVOICE_BYTES,
        "invoice",
    )?;
    if sign::nonce(&quote.nonce).is_none() {
        return Err((RefusalCode::Nonce, "nonce"));
    }
    let lsp_key = &ground.header.lsp_key;
    match sale.is_promised(&ground.slot.attempt, lsp_key, &quote.signature) {
        true => Ok(link),
        false => Err((RefusalCode::Signature, "signature")),
    }
}

/// Rebuilds a sale of this place's newest stock output.
pub(super) fn terms(
    ground: &Ground<'_>,
    chain: &StockChain,
    sale: &SaleTerms,
) -> Result<Link, Wrong> {
    let newest = chain.newest();
    let agreed = [
        (sale.slot == ground.slot.slot, "slot"),
        (sale.version == ground.version, "version"),
        (newest.is_some_and(|it| it.link() == sale.link), "link"),
        (
            newest.is_some_and(|it| it.outpoint() == sale.stock),
            "stock",
        ),
        // The preimage of a hash that is used again would be known before its time.
        (
            sale.next_hash
                .is_none_or(|hash| chain.stocks().all(|stock| stock.hash() != hash)),
            "next_hash",
        ),
    ];
    if let Some((_, field)) = agreed.iter().find(|(same, _)| !same) {
        return Err((RefusalCode::Terms, field));
    }
    let link = chain.sell(&sale.link_terms());
    link.map_err(|error| (RefusalCode::Terms, error.field()))
}
