//! A buyer back from its member's records.

use super::{Buyer, Ground, Sale};
use crate::journal::{Record, SaleStep};
use crate::sale::verify;

impl Buyer {
    /// Takes the next record, or says why it cannot follow.
    pub(crate) fn add(&mut self, ground: &Ground<'_>, record: &Record) -> Result<(), &'static str> {
        let Some(chain) = &mut self.chain else {
            return Err("a sale where nothing is for sale");
        };
        match (record, &mut self.sale) {
            (Record::MemberSaleSigned(body), None) => {
                let accept = body.accept.clone();
                if accept.attempt != ground.slot.attempt {
                    return Err("the sale is of another attempt");
                }
                let link = verify::terms(ground, chain, &accept.sale);
                let link = link.map_err(|_| "the sale is not of the newest stock")?;
                self.sale = Some(Box::new(Sale {
                    accept,
                    invoice: body.invoice.clone(),
                    guard: body.guard,
                    link,
                    signature: None,
                    held: false,
                    guarded: false,
                    paid: false,
                    lost: false,
                }));
            }
            (Record::MemberSaleSig(body), Some(sale))
                if sale.signature.is_none() && !sale.lost && sale.terms().link == body.link =>
            {
                let pushed = chain.push(sale.terms().link_terms(), body.signature);
                pushed.map_err(|_| "the sale's signature is invalid")?;
                sale.signature = Some(body.signature);
            }
            (Record::SaleStepped(body), Some(sale))
                if body.slot == ground.slot.slot && body.link == sale.terms().link =>
            {
                let flag = match body.step {
                    SaleStep::Held => &mut sale.held,
                    SaleStep::Guarded => &mut sale.guarded,
                    SaleStep::Paid => &mut sale.paid,
                    SaleStep::Lost if sale.signature.is_some() => {
                        return Err("a sale that was delivered is not lost");
                    }
                    SaleStep::Lost => &mut sale.lost,
                };
                if std::mem::replace(flag, true) {
                    return Err("a step of a sale that was taken before");
                }
            }
            _ => return Err("not what a buyer writes next"),
        }
        if let Some(sale) = self.sale.take_if(|sale| sale.is_settled()) {
            self.done.push(sale.terms().clone());
        }
        Ok(())
    }
}
