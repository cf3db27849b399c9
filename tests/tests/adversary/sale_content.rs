//! An LSP that says something else of a sale than what was agreed, or goes on selling in a factory
//! that it opens itself: one stock output is signed for once, and what may never be on chain is not
//! paid for.

use bitcoin::{Amount, OutPoint, Txid};
use superscalar_factory::message::{Message, Quote, Refusal, RefusalCode, SaleAccept, SaleSig};
use superscalar_sdk::{BuildRequest, Direction, Event, InboundQuote, PaymentStatus, package};
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::tap::{self, Side, Tap, cheating};
use superscalar_tests::trail::{COMMITMENT_FEE_SAT, value_of};

use super::building::stranger;
use crate::epochs::leaves_with;

const CAPACITY_SAT: u64 = 500_000;
const STOCK_SAT: u64 = 300_000;
const BOUGHT_SAT: u64 = 70_000;
const BEFORE_MSAT: u64 = 100_000_000;
/// More than fits into the channel there was.
const FILLING_MSAT: u64 = 430_000_000;
/// More than any price here.
const ANY_PRICE_MSAT: u64 = 100_000_000;

/// A member with something to pay with and stock beside its channel, and a tap on its line.
struct Bench {
    network: TestNetwork,
    tap: Tap,
    factory: String,
    /// What the LSP has on chain before anything is sold, in satoshi.
    coins_sat: u64,
}

impl Bench {
    async fn set() -> Bench {
        superscalar_tests::log_to_stderr();
        let network = TestNetwork::start(2).await;
        let request = BuildRequest {
            stock_sat: STOCK_SAT,
            ..regtest_factory(2)
        };
        let factory = network.build(request).await;
        network.lsp_pays(0, BEFORE_MSAT).await;
        network.at_rest(0).await;
        let tap = network.tap(0).await;
        network.reconnected().await;
        let coins_sat = coins_sat(&network);
        Bench {
            network,
            tap,
            factory,
            coins_sat,
        }
    }

    /// Asks for a price; the answer, and what the LSP has promised in it.
    async fn quoted(&self, sat: u64) -> (InboundQuote, Quote) {
        let factories = self.network.wallet(0).factories();
        let asked = factories.quote_inbound(&self.factory, sat, ANY_PRICE_MSAT);
        let asked = asked.await.unwrap();
        let mut heard = self.tap.heard_of_factories(Side::Lsp).into_iter().rev();
        let quote = heard.find_map(|message| match message {
            Message::Quote(quote) => Some(quote),
            _ => None,
        });
        let quote = quote.unwrap();
        assert_eq!(quote.sale.amount, Amount::from_sat(sat));
        (asked, quote)
    }

    async fn buys(&self, quoted: &InboundQuote) {
        let factories = self.network.wallet(0).factories();
        factories.buy_inbound(quoted).await.unwrap();
    }

    /// What the LSP's program signs is not said any more.
    fn keep_back_deliveries(&self) {
        let cheat = |message: Message| match message {
            Message::SaleSig(_) => Vec::new(),
            other => vec![other],
        };
        self.tap.set_rule(cheating(Side::Lsp, Box::new(cheat)));
    }

    /// What the LSP's program said to deliver the sale.
    async fn delivery(&self) -> SaleSig {
        let mut said = None;
        self.network
            .wait("the LSP to deliver", async || {
                let mut heard = self.tap.heard_of_factories(Side::Lsp).into_iter();
                said = heard.find_map(|message| match message {
                    Message::SaleSig(sig) => Some(sig),
                    _ => None,
                });
                said.is_some()
            })
            .await;
        said.unwrap()
    }

    /// Says something in the name of the LSP.
    fn say(&self, message: impl Into<Message>) {
        let message = tap::Message::of_factory(&message.into());
        assert!(self.tap.say(Side::Lsp, message));
    }

    /// The member refuses this, which the LSP says.
    async fn is_refused(&self, message: impl Into<Message>, code: RefusalCode, field: &str) {
        let before = self.refusals().len();
        self.say(message);
        self.network
            .wait(field, async || self.refusals().len() > before)
            .await;
        let refused = self.refusals().split_off(before);
        assert_eq!(refused, [(code, field.to_owned())]);
    }

    /// Everything that was said to the member before this is dealt with: another sale's signature is
    /// refused, in its turn.
    async fn is_dealt_with(&self, sig: &SaleSig, other: &Quote) {
        let stray = SaleSig {
            sale: other.sale.id(&other.attempt),
            ..sig.clone()
        };
        self.is_refused(stray, RefusalCode::Unexpected, "signature")
            .await;
    }

    /// What the member's program refused.
    fn refusals(&self) -> Vec<(RefusalCode, String)> {
        let said = self.tap.heard_of_factories(Side::Member).into_iter();
        let refused = said.filter_map(|message| match message {
            Message::Refusal(Refusal { code, field, .. }) => Some((code, field)),
            _ => None,
        });
        refused.collect()
    }

    /// Every partial signature of a sale that the member's program let go.
    fn accepts(&self) -> Vec<SaleAccept> {
        let said = self.tap.heard_of_factories(Side::Member).into_iter();
        let signed = said.filter_map(|message| match message {
            Message::SaleAccept(accept) => Some(accept),
            _ => None,
        });
        signed.collect()
    }

    async fn until_accepted(&self, times: usize) {
        self.network
            .wait("an acceptance", async || self.accepts().len() == times)
            .await;
    }

    /// How many messages of this kind the member's program said.
    fn said(&self, is_it: fn(&Message) -> bool) -> usize {
        let said = self.tap.heard_of_factories(Side::Member);
        said.iter().filter(|message| is_it(message)).count()
    }

    /// How often each side was told that a channel is paid for.
    fn paid_for(&self) -> [usize; 2] {
        let is_paid = |event: &&Event| matches!(event, Event::InboundPaid { .. });
        [self.network.member_events(0), self.network.lsp_events()]
            .map(|events| events.iter().filter(is_paid).count())
    }

    /// All that the member has sent.
    fn paid_out(&self) -> Vec<(Option<u64>, PaymentStatus)> {
        let payments = self.network.wallet(0).lightning().payments().unwrap();
        let ours = payments
            .into_iter()
            .filter(|it| it.direction == Direction::Outbound);
        ours.map(|it| (it.amount_msat, it.status)).collect()
    }

    /// The member is told once that its LSP wanted something else signed.
    async fn is_told_once(&self) {
        let network = &self.network;
        let told = || {
            let mut events = network.member_events(0);
            events.retain(|it| matches!(it, Event::FactoryEquivocation { .. }));
            events
        };
        network
            .wait("the user to be told", async || !told().is_empty())
            .await;
        let equivocation = Event::FactoryEquivocation {
            factory: self.factory.clone(),
            slot: network.seat(0, &self.factory).await.slot,
            channel: 1,
            peer: network.lsp().node_id(),
        };
        assert_eq!(told(), [equivocation]);
    }

    /// Lets the LSP open the factory: its root's kickoff is in the mempool.
    async fn open(&self) -> Txid {
        let exit = self.network.lsp().exit();
        let sealed = exit.export_package("cheat").await.unwrap();
        let package = package::open(&sealed, "cheat").unwrap();
        let root = &package.paths()[0].path.nodes()[0];
        let kickoff = self.network.chain.submit(&root.kickoff).unwrap();
        assert_eq!(self.network.chain.mempool().unwrap(), [kickoff]);
        kickoff
    }

    /// The kickoff gets into a block, which everybody sees.
    async fn bury(&self, kickoff: Txid) {
        self.network.mine(1).await;
        let height = self.network.chain.height().unwrap();
        let confirmed = self.network.chain.confirmed_at(kickoff).unwrap();
        assert_eq!(confirmed, Some(height));
    }

    /// Nobody has paid for anything.
    fn nothing_is_sent(&self) {
        assert_eq!(self.paid_for(), [0, 0]);
        let sent = self.paid_out();
        assert!(sent.is_empty(), "{sent:?}");
    }

    /// The same, and each side has what it had.
    fn nothing_is_paid(&self) {
        let network = &self.network;
        self.nothing_is_sent();
        assert_eq!(network.balance_msat(0), BEFORE_MSAT);
        let channels = network.channels_with(0);
        let own = channels.iter().find(|it| it.capacity_sat == CAPACITY_SAT);
        let theirs_msat = own.unwrap().balance_msat;
        assert_eq!(theirs_msat, CAPACITY_SAT * 1_000 - BEFORE_MSAT);
        assert_eq!(coins_sat(network), self.coins_sat);
    }

    /// The member leaves with what it had, to the satoshi, and the commitment's fee is the LSP's loss;
    /// the leaf.
    async fn leaves(&self) -> Txid {
        let network = &self.network;
        let seat = network.seat(0, &self.factory).await;
        let channel: OutPoint = seat.channel.unwrap().parse().unwrap();
        let own = [(channel, BEFORE_MSAT / 1_000)];
        leaves_with(network, &self.factory, &own).await;
        let (commitment, _) = network.confirmed_spender(channel);
        let paid_sat = value_of(&commitment);
        assert_eq!(paid_sat, CAPACITY_SAT - COMMITMENT_FEE_SAT);
        channel.txid
    }
}

/// All that the LSP has on chain, coins on their way included.
fn coins_sat(network: &TestNetwork) -> u64 {
    let balance = network.lsp().balance();
    balance.onchain_sat + balance.onchain_pending_sat
}

/// Other sales of the stock output that `chosen` spends: what was promised before, and what was not.
fn others(chosen: &Quote, promised: &[&Quote]) -> Vec<Quote> {
    let forges: [fn(&mut Quote); 5] = [
        |it| it.sale.amount += Amount::ONE_SAT,
        |it| it.sale.lsp_funding_key = stranger(),
        |it| it.sale.next_hash = Some([7; 32]),
        |it| it.sale.price_msat -= 1,
        |it| it.sale.link += 1,
    ];
    let forged = forges.into_iter().map(|forge| {
        let mut quote = chosen.clone();
        // A nonce that nothing was signed for yet.
        quote.nonce = promised[0].nonce;
        forge(&mut quote);
        quote
    });
    let promised = promised.iter().copied().cloned();
    let all: Vec<Quote> = promised.chain(forged).collect();
    for other in &all {
        assert_eq!(other.sale.stock, chosen.sale.stock);
        assert_ne!(other.sale, chosen.sale);
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_output_is_sold_once_whatever_the_lsp_offers() {
    let bench = Bench::set().await;
    let network = &bench.network;
    // Its own program promises three channels out of one output.
    let (_, less) = bench.quoted(60_000).await;
    let (_, more) = bench.quoted(80_000).await;
    let (bought, chosen) = bench.quoted(BOUGHT_SAT).await;
    let others = others(&chosen, &[&less, &more]);

    // Before the delivery.
    bench.keep_back_deliveries();
    bench.buys(&bought).await;
    let sig = bench.delivery().await;
    bench.until_accepted(1).await;
    let first = bench.accepts().remove(0);
    assert_eq!(first.sale, chosen.sale);
    for other in others.clone() {
        bench
            .is_refused(other, RefusalCode::Equivocation, "sale")
            .await;
    }
    bench.is_told_once().await;
    bench.is_dealt_with(&sig, &less).await;
    let mut forged = sig.clone();
    forged.signature = chosen.signature;
    bench
        .is_refused(forged, RefusalCode::Signature, "signature")
        .await;
    assert_eq!(bench.accepts().len(), 1);
    let seat = network.seat(0, &bench.factory).await;
    assert_eq!(
        (seat.sale.as_deref(), seat.sold.len()),
        (Some("pending"), 0)
    );

    // The same again is answered by the same. For another nonce the same is signed, with another of
    // its own: two signatures with one would give the key away.
    bench.say(chosen.clone());
    bench.until_accepted(2).await;
    assert_eq!(bench.accepts()[1], first);
    let again = Quote {
        nonce: less.nonce,
        ..chosen.clone()
    };
    bench.say(again);
    bench.until_accepted(3).await;
    let last = bench.accepts().remove(2);
    assert_eq!(last.sale, first.sale);
    assert_eq!(last.quoted_nonce, less.nonce);
    assert_ne!(last.nonce, first.nonce);
    assert_eq!((bench.paid_for(), bench.paid_out().len()), ([0, 0], 0));

    // What was signed is delivered, and paid for once.
    bench.tap.pass();
    bench.say(sig.clone());
    network
        .wait("the channel to be paid for", async || {
            bench.paid_for() == [1, 1]
        })
        .await;
    for other in others {
        bench
            .is_refused(other, RefusalCode::Equivocation, "sale")
            .await;
    }
    bench.is_dealt_with(&sig, &less).await;
    bench.is_told_once().await;
    assert_eq!(bench.accepts().len(), 3);
    let price_msat = bought.price_msat;
    let paid = (Some(price_msat), PaymentStatus::Succeeded);
    assert_eq!(bench.paid_out(), [paid]);

    // The sale stands, and its channel carries payments.
    let seat = network.seat(0, &bench.factory).await;
    assert_eq!((seat.sale, seat.sold.len()), (None, 1));
    assert_eq!(seat.sold[0].capacity_sat, BOUGHT_SAT);
    let (ours, _) = network.at_rest(0).await;
    assert_eq!(ours, BEFORE_MSAT - price_msat);
    network.lsp_pays(0, FILLING_MSAT).await;
    let (ours, theirs) = network.at_rest(0).await;
    assert_eq!(ours, BEFORE_MSAT - price_msat + FILLING_MSAT);
    // The cheat has the price of one channel, and nothing else.
    assert_eq!(theirs, (CAPACITY_SAT + BOUGHT_SAT) * 1_000 - ours);
    assert_eq!(network.channels_with(0).len(), 2);
    assert_eq!(coins_sat(network), bench.coins_sat);
    assert_eq!(bench.paid_for(), [1, 1]);
    assert!(network.chain.mempool().unwrap().is_empty());

    // The next is out of what is left.
    let (_, next) = bench.quoted(40_000).await;
    assert_eq!((chosen.sale.link, next.sale.link), (0, 1));
    assert_ne!(next.sale.stock, chosen.sale.stock);
    bench.network.stop().await;
}

/// The LSP opens the factory itself, and says what it has promised before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_sold_once_the_kickoff_is_out() {
    let bench = Bench::set().await;
    let network = &bench.network;
    let (quoted, quote) = bench.quoted(BOUGHT_SAT).await;
    let kickoff = bench.open().await;
    let factories = network.wallet(0).factories();
    let refused = factories.buy_inbound(&quoted).await.unwrap_err();
    assert_eq!(refused.code(), "factory_opened");
    let requests = || bench.said(|it| matches!(it, Message::QuoteRequest(_)));
    assert_eq!(requests(), 1);
    for in_a_block in [false, true] {
        if in_a_block {
            bench.bury(kickoff).await;
        }
        let asked = factories.quote_inbound(&bench.factory, BOUGHT_SAT, ANY_PRICE_MSAT);
        assert_eq!(asked.await.unwrap_err().code(), "factory_opened");
        // It is promised all the same, and signed for.
        bench
            .is_refused(quote.clone(), RefusalCode::Unexpected, "sale")
            .await;
        let sig = SaleSig {
            attempt: quote.attempt,
            sale: quote.sale.id(&quote.attempt),
            signature: quote.signature,
        };
        bench
            .is_refused(sig, RefusalCode::Unexpected, "signature")
            .await;
        // What was quoted before is no quote any more.
        let refused = factories.buy_inbound(&quoted).await.unwrap_err();
        assert_eq!(refused.code(), "no_quote");
        let seat = network.seat(0, &bench.factory).await;
        assert_eq!((seat.sale, seat.sold.len()), (None, 0));
        assert_eq!(network.channels_with(0).len(), 1);
        bench.nothing_is_paid();
    }
    assert_eq!((requests(), bench.accepts().len()), (1, 0));

    // The LSP has less in the end than was its own in the leaf.
    let leaf = bench.leaves().await;
    let outputs = network.chain.raw_tx(leaf).unwrap().unwrap().output;
    for (vout, output) in (0..).zip(&outputs) {
        if output.script_pubkey.is_p2tr() {
            let stock = OutPoint::new(leaf, vout);
            network.mined_spend(stock, &[0]).await;
        }
    }
    network.follow(&[0]).await;
    let gained_sat = coins_sat(network) - bench.coins_sat;
    let entitled_sat = 2 * (CAPACITY_SAT + STOCK_SAT) - BEFORE_MSAT / 1_000;
    assert!(gained_sat < entitled_sat, "{gained_sat} of {entitled_sat}");
    bench.nothing_is_sent();
    bench.network.stop().await;
}

/// It keeps back what it has signed until the factory is open. A member that has seen that takes
/// nothing more and signs nothing again; one that has not yet looks before it pays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_delivered_once_the_kickoff_is_out_is_not_paid_for() {
    for has_looked in [true, false] {
        let bench = Bench::set().await;
        let network = &bench.network;
        let (_, other) = bench.quoted(60_000).await;
        let (bought, chosen) = bench.quoted(BOUGHT_SAT).await;
        bench.keep_back_deliveries();
        bench.buys(&bought).await;
        let sig = bench.delivery().await;
        bench.until_accepted(1).await;
        let kickoff = bench.open().await;

        if has_looked {
            // It looks because it is to sign for another nonce.
            let again = Quote {
                nonce: other.nonce,
                ..chosen
            };
            bench.say(again);
            bench.is_dealt_with(&sig, &other).await;
        }
        bench.say(sig.clone());
        bench.is_dealt_with(&sig, &other).await;
        bench.nothing_is_paid();
        bench.bury(kickoff).await;
        bench.say(sig.clone());
        bench.is_dealt_with(&sig, &other).await;
        bench.nothing_is_paid();
        assert_eq!(bench.accepts().len(), 1);

        if has_looked {
            let stored = bench.said(|it| matches!(it, Message::SaleStored(_)));
            let seat = network.seat(0, &bench.factory).await;
            let sale = (seat.sale.as_deref(), seat.sold.len());
            assert_eq!((stored, sale), (0, (Some("pending"), 0)));
            bench.leaves().await;
            bench.nothing_is_sent();
        }
        bench.network.stop().await;
    }
}
