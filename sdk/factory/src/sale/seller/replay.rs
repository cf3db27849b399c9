//! A seller back from its coordinator's records.

use super::{Ground, Seller, Signed};
use crate::journal::{Record, SaleStep};

impl Seller {
    /// Takes the next record, or says why it cannot follow.
    pub(crate) fn add(&mut self, ground: &Ground<'_>, record: &Record) -> Result<(), &'static str> {
        let slot = match record {
            Record::LspSaleSigned(body) => body.sale.slot,
            Record::SaleStepped(body) => body.slot,
            _ => return Err("not what a seller writes"),
        };
        if usize::from(slot) >= ground.peers.len() {
            return Err("a sale to no place of this factory");
        }
        let place = self.place(ground, slot);
        let Some(chain) = &mut place.chain else {
            return Err("a sale where nothing is for sale");
        };
        match (record, &mut place.signed) {
            (Record::LspSaleSigned(body), signed @ None) if !place.unpaid => {
                let (terms, signature) = (body.sale.clone(), body.signature);
                let stock = chain.newest();
                let stock = stock.filter(|it| it.outpoint() == terms.stock);
                let link = stock
                    .filter(|it| it.link() == terms.link && terms.version == place.version)
                    .and_then(|stock| stock.sell(&terms.link_terms()).ok());
                let link = link.ok_or("the sale is not of the newest stock")?;
                if !link.is_signed(&signature) {
                    return Err("the sale's signature is invalid");
                }
                *signed = Some(Box::new(Signed {
                    terms,
                    signature,
                    link,
                    paid: false,
                    lost: false,
                }));
            }
            (Record::SaleStepped(body), signed) => match (body.step, signed) {
                (SaleStep::Held, signed @ Some(_)) => {
                    let held = |it: &mut Box<Signed>| it.terms.link == body.link && !it.lost;
                    let Some(sale) = signed.take_if(held) else {
                        return Err("a step of another sale");
                    };
                    let pushed = chain.push(sale.terms.link_terms(), sale.signature);
                    pushed.map_err(|_| "the sale is not of the newest stock")?;
                    place.unpaid = !sale.paid;
                    place.sold.push(sale.terms);
                }
                (SaleStep::Paid, Some(sale)) if sale.terms.link == body.link && !sale.paid => {
                    sale.paid = true;
                }
                (SaleStep::Lost, Some(sale)) if sale.terms.link == body.link && !sale.lost => {
                    sale.lost = true;
                }
                (SaleStep::Paid, None)
                    if place.unpaid && place.sold.last().is_some_and(|it| it.link == body.link) =>
                {
                    place.unpaid = false;
                }
                _ => return Err("not what a seller writes next"),
            },
            _ => return Err("not what a seller writes next"),
        }
        Ok(())
    }
}
