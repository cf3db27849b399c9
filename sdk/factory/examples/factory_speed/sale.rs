//! One sale between an LSP and a member: what each of them computes, messages and records encoded.

use std::error::Error;

use bitcoin::Amount;
use superscalar_factory::coordinator;
use superscalar_factory::effect::{Effect, QuoteBacking};
use superscalar_factory::journal::Guard;
use superscalar_factory::member;
use superscalar_factory::message::Message;
use superscalar_factory::sale::{Ask, SalePolicy};
use superscalar_factory::wire;

use crate::{Clock, bytes, ceremony, key};

/// CPU seconds of either side.
pub(crate) struct Run {
    pub(crate) lsp_s: f64,
    pub(crate) member_s: f64,
}

/// Every call of one role, timed.
#[derive(Default)]
struct Timed {
    cpu_s: f64,
}

impl Timed {
    fn call(&mut self, call: impl FnOnce() -> Vec<Effect>) -> Vec<Effect> {
        let clock = Clock::start();
        let effects = call();
        for effect in &effects {
            match effect {
                Effect::Send { message, .. } => drop(wire::frames(message)),
                Effect::Persist(record) => {
                    use superscalar_factory::codec::Encode as _;
                    drop(record.to_bytes());
                }
                _ => {}
            }
        }
        self.cpu_s += clock.time().cpu_s;
        effects
    }
}

fn said(effects: Vec<Effect>) -> Result<Message, Box<dyn Error>> {
    let mut effects = effects.into_iter();
    let found = effects.find_map(|effect| match effect {
        Effect::Send { message, .. } => Some(message),
        _ => None,
    });
    found.ok_or_else(|| "nothing was said".into())
}

pub(crate) fn run() -> Result<Run, Box<dyn Error>> {
    let (mut built, _) = ceremony::build(2)?;
    built.bury()?;
    let from = built.plan.seats[0].peer;
    let lsp = &mut built.lsp;
    let member = built.members[0].as_mut().ok_or("no member")?;
    lsp.set_sale_policy(Some(SalePolicy {
        base_msat: 1_000,
        ppm_per_month: 2_500,
        min_amount: Amount::from_sat(10_000),
        valid_blocks: 6,
        min_life_blocks: 144,
    }));
    let id = member.next_channel().ok_or("nothing is for sale")?;
    let (mut seller, mut buyer) = (Timed::default(), Timed::default());
    let ask = Ask {
        amount: Amount::from_sat(20_000),
        max_price_msat: u64::MAX,
        funding_key: key("member bought", 0)?,
        guard: Guard::Member,
    };
    let asked = buyer.call(|| member.ask(ask).unwrap_or_default());
    let message = said(asked)?;
    let wanted = seller.call(|| lsp.handle(coordinator::Input::Message { from, message }));
    let Some(Effect::PrepareQuote(wanted)) = wanted.into_iter().next() else {
        return Err("no quote is prepared".into());
    };
    let backing = QuoteBacking {
        funding_key: key("lsp bought", 0)?,
        payment_hash: bytes("payment", 0),
        invoice: "lnbc".repeat(80),
        randomness: bytes("lsp nonce", 0),
    };
    let quoted = seller.call(|| lsp.handle(coordinator::Input::QuotePrepared { wanted, backing }));
    let Message::Quote(quote) = said(quoted)? else {
        return Err("no quote".into());
    };
    let sale = quote.sale.id(&quote.attempt);
    buyer.call(|| member.handle(member::Input::Message(quote.into())));
    let nonce = bytes("member nonce", 0);
    let accepted = buyer.call(|| member.accept(sale, &nonce).unwrap_or_default());
    let message = said(accepted)?;
    seller.call(|| lsp.handle(coordinator::Input::Message { from, message }));
    let delivered = seller.call(|| lsp.handle(coordinator::Input::BoughtHeld(id)));
    let message = said(delivered)?;
    buyer.call(|| member.handle(member::Input::BoughtHeld(id)));
    buyer.call(|| member.handle(member::Input::Message(message)));
    match member
        .stock_chain()
        .is_some_and(|chain| chain.links().len() == 1)
    {
        true => Ok(Run {
            lsp_s: seller.cpu_s,
            member_s: buyer.cpu_s,
        }),
        false => Err("nothing was sold".into()),
    }
}
