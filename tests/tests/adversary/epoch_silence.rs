//! Somebody says nothing more at some message of a new epoch, an LSP not even that it gives it up.
//! Payments go on in the old channels, nobody has lost anything, and a later epoch is made.

use superscalar_factory::message::Message;
use superscalar_sdk::{BuildRequest, EpochRequest, Event};
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::tap::{Side, Tap, cheating};

const ROUND_SECONDS: u16 = 2;
/// Numbers of messages, see the registry.
const PROPOSE: u16 = 20;
const READY: u16 = 21;
const TERMS: u16 = 22;
const PARTIALS: u16 = 23;
const SIGS: u16 = 24;
pub(crate) const STORED: u16 = 25;
const ASK: u16 = 26;
const NONCE: u16 = 27;
const COMMIT: u16 = 28;
pub(crate) const SIG: u16 = 30;
pub(crate) const REVEAL: u16 = 31;
const SWITCH_ACK: u16 = 32;
pub(crate) const END: u16 = 33;

/// Two members in one leaf, another beside it, and a tap on the line of one of the two.
pub(crate) struct Bench {
    pub(crate) network: TestNetwork,
    pub(crate) tap: Tap,
    pub(crate) factory: String,
    /// Whose line it is.
    pub(crate) victim: usize,
    pub(crate) other: usize,
    /// What both have, in msat.
    own: [u64; 2],
}

impl Bench {
    pub(crate) async fn set() -> Bench {
        superscalar_tests::log_to_stderr();
        let network = TestNetwork::start(3).await;
        let request = BuildRequest {
            round_seconds: ROUND_SECONDS,
            stock_sat: 200_000,
            ..regtest_factory(3)
        };
        let factory = network.build(request).await;
        let mut leaf = Vec::new();
        for member in 0..3 {
            if network.seat(member, &factory).await.slot < 2 {
                leaf.push(member);
            }
        }
        let (victim, other) = (leaf[0], leaf[1]);
        let own = [100_000_007, 50_000_000];
        for (member, msat) in leaf.into_iter().zip(own) {
            network.lsp_pays(member, msat).await;
        }
        let tap = network.tap(victim).await;
        network.reconnected().await;
        Bench {
            network,
            tap,
            factory,
            victim,
            other,
            own,
        }
    }

    fn pair(&self) -> [usize; 2] {
        [self.victim, self.other]
    }

    /// From now on `who` says none of these.
    pub(crate) fn withhold(&self, who: Side, numbers: &[u16]) {
        let numbers = numbers.to_vec();
        let cheat = move |message: Message| match numbers.contains(&message.number()) {
            true => Vec::new(),
            false => vec![message],
        };
        self.tap.set_rule(cheating(who, Box::new(cheat)));
    }

    pub(crate) async fn begin(&self) -> String {
        let request = EpochRequest::default();
        let begun = self.network.lsp().begin_epoch(&self.factory, request).await;
        begun.unwrap()
    }

    /// How many epochs have come to nothing, by the LSP's word.
    pub(crate) fn ended(&self) -> usize {
        let ended = |event: &&Event| matches!(event, Event::EpochEnded { .. });
        self.network.lsp_events().iter().filter(ended).count()
    }

    /// An epoch in which `who` says nothing more from this message on comes to nothing, and the
    /// silent line is named.
    pub(crate) async fn comes_to_nothing(&self, who: Side, number: u16) {
        let before = self.ended();
        match who {
            Side::Member => self.withhold(who, &[number]),
            Side::Lsp => self.withhold(who, &[number, END]),
        }
        self.begin().await;
        self.network
            .wait("the epoch to end", async || self.ended() > before)
            .await;
        let slot = self.network.seat(self.victim, &self.factory).await.slot;
        let events = self.network.lsp_events();
        let last = events.iter().rev().find_map(|event| match event {
            Event::EpochEnded { at_fault, .. } => Some(at_fault.clone()),
            _ => None,
        });
        assert_eq!(last, Some(vec![slot]), "{who:?} {number}");
        self.goes_on().await;
        self.tap.pass();
    }

    /// Both can pay and be paid again, and have what they had.
    pub(crate) async fn goes_on(&self) {
        let (network, [victim, other]) = (&self.network, self.pair());
        for member in self.pair() {
            network
                .wait("the channels to be awake", async || {
                    let seat = network.seat(member, &self.factory).await;
                    let lightning = network.wallet(member).lightning();
                    let asked = lightning.receive(Some(1_000), "", 60).await;
                    seat.moving.is_none() && (asked.is_ok() || seat.most_msat.is_some())
                })
                .await;
        }
        self.has_what_it_had().await;
        // In limbo there is room for what was sent before, once that has arrived.
        for (from, to) in [(other, victim), (victim, other)] {
            network.pay(from, to, 1_000_000).await;
            network.at_rest(from).await;
            network.at_rest(to).await;
        }
        // What the LSP takes for passing it on is made good, so that each amount is what it was.
        for (member, before) in self.pair().into_iter().zip(self.own) {
            let now = network.balance_msat(member);
            assert!(now < before && before - now < 20_000, "{now} {before}");
            network.lsp_pays(member, before - now).await;
        }
        self.has_what_it_had().await;
    }

    async fn has_what_it_had(&self) {
        for (member, own) in self.pair().into_iter().zip(self.own) {
            assert_eq!(self.network.at_rest(member).await.0, own);
        }
        assert!(self.network.chain.mempool().unwrap().is_empty());
    }

    /// Both are in this version.
    pub(crate) async fn until_moved(&self, version: u32) {
        self.network
            .wait("both to move", async || {
                let mut there = 0;
                for member in self.pair() {
                    let seat = self.network.seat(member, &self.factory).await;
                    let free = seat.moving.is_none() && seat.most_msat.is_none();
                    there += u32::from(seat.version == version && free);
                }
                there == 2 && self.acknowledged(version) == 2
            })
            .await;
        self.has_what_it_had().await;
    }

    /// How many of the two have said that they are in this version.
    fn acknowledged(&self, version: u32) -> usize {
        let moved = |event: &&Event| matches!(event, Event::EpochMoved { version: at, slot, .. } if *at == version && *slot < 2);
        self.network.lsp_events().iter().filter(moved).count()
    }

    /// The line breaks; over the next one everything is said.
    pub(crate) fn again(&self) {
        self.tap.pass();
        self.network.members[self.victim].wire.hang_up();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_before_anybody_signs_costs_a_try_and_nothing_else() {
    let bench = Bench::set().await;
    for number in [READY, STORED, NONCE] {
        bench.comes_to_nothing(Side::Member, number).await;
    }
    for number in [PROPOSE, TERMS, ASK] {
        bench.comes_to_nothing(Side::Lsp, number).await;
    }
    // No number was used up by it.
    assert!(bench.begin().await.starts_with("epoch 1 of node 1"));
    bench.until_moved(1).await;
    bench.goes_on().await;
    bench.network.stop().await;
}

/// An LSP that has asked one member for its signature and leaves the other without a word: the one is
/// in limbo once that is given up, the other free, and the number is used up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_after_somebody_has_signed_ends_with_the_next_epoch() {
    let bench = Bench::set().await;
    bench.withhold(Side::Lsp, &[COMMIT, END]);
    bench.begin().await;
    let network = &bench.network;
    network
        .wait("the LSP to wait", async || {
            let hangs = |event: &Event| matches!(event, Event::EpochHangs { silent, .. } if silent.len() == 1);
            network.lsp_events().iter().any(hangs)
        })
        .await;
    network
        .wait("the member to be tired of it", async || {
            network
                .seat(bench.victim, &bench.factory)
                .await
                .moving
                .is_none()
        })
        .await;
    network.lsp().abandon_epoch(&bench.factory).await.unwrap();
    network
        .wait("limbo", async || {
            let seat = network.seat(bench.other, &bench.factory).await;
            seat.moving.is_none() && seat.most_msat == Some(bench.own[1])
        })
        .await;
    bench.goes_on().await;
    bench.tap.pass();
    // An epoch of the root: in it more is said.
    for (who, number) in [(Side::Member, PARTIALS), (Side::Lsp, SIGS)] {
        bench.comes_to_nothing(who, number).await;
    }
    assert!(bench.begin().await.starts_with("epoch 1 of node 0"));
    bench.until_moved(2).await;
    bench.goes_on().await;
    bench.network.stop().await;
}

/// Between the final signature and the verified preimages no channel is used; whatever is missing of
/// that is said over the next connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_withheld_of_a_switch_is_all_that_keeps_it_back() {
    let bench = Bench::set().await;
    let network = &bench.network;
    // The signature: the LSP has all of them, and says nothing.
    bench.withhold(Side::Lsp, &[SIG, REVEAL, END]);
    bench.begin().await;
    network
        .wait("limbo", async || {
            let limbo = |event: &Event| matches!(event, Event::EpochLimbo { most_msat, .. } if *most_msat == bench.own[0]);
            network.member_events(bench.victim).iter().any(limbo)
        })
        .await;
    let seat = network.seat(bench.victim, &bench.factory).await;
    assert_eq!(
        (seat.version, seat.moving.as_deref()),
        (0, Some("committed"))
    );
    bench.again();
    bench.until_moved(1).await;

    // Preimages that revoke nothing, and none at all.
    bench.tap.set_rule(cheating(
        Side::Lsp,
        Box::new(|message| match message {
            Message::EpochReveal(mut reveal) => {
                reveal.preimages[0][0] ^= 1;
                vec![reveal.into()]
            }
            other => vec![other],
        }),
    ));
    network.reconnected().await;
    bench.begin().await;
    network
        .wait("the preimages to be refused", async || {
            let refused = |event: &Event| matches!(event, Event::FactoryRefused { field, .. } if field == "preimages");
            network.member_events(bench.victim).iter().any(refused)
        })
        .await;
    bench.withhold(Side::Lsp, &[REVEAL]);
    network.members[bench.victim].wire.hang_up();
    network
        .wait("the member to be back", async || {
            network.wallet(bench.victim).status().lsp_connected
        })
        .await;
    let seat = network.seat(bench.victim, &bench.factory).await;
    assert_eq!(
        (seat.version, seat.moving.as_deref()),
        (2, Some("switching"))
    );
    let lightning = network.wallet(bench.victim).lightning();
    let asked = lightning.receive(Some(1_000), "", 60).await.unwrap_err();
    assert_eq!(asked.code(), "channels_at_rest");
    bench.again();
    bench.until_moved(2).await;

    // What the member says last: its own channel is in use, the LSP waits to hear of it.
    network.reconnected().await;
    bench.withhold(Side::Member, &[SWITCH_ACK]);
    bench.begin().await;
    network
        .wait("the member to have switched", async || {
            let seat = network.seat(bench.victim, &bench.factory).await;
            seat.version == 3 && seat.moving.is_none()
        })
        .await;
    assert!(bench.acknowledged(3) < 2);
    bench.again();
    bench.until_moved(3).await;
    network.reconnected().await;
    bench.goes_on().await;
    bench.network.stop().await;
}
