//! What tests ask about a member's place: its seat, its channels, and what it was told.

use superscalar_sdk::{ChannelInfo, Event, SeatInfo};

use crate::network::TestNetwork;
use crate::tap::{Side, Tap};

impl TestNetwork {
    /// A member's place in a factory, by its own word.
    pub async fn seat(&self, member: usize, factory: &str) -> SeatInfo {
        let infos = self.wallet(member).factories().list().await.unwrap();
        let info = infos.into_iter().find(|it| it.factory == factory).unwrap();
        info.seats.into_iter().next().unwrap()
    }

    /// Lets a member take another node id for the one at its LSP's address, over a restart.
    pub async fn believe(&mut self, member: usize, node_id: &str) {
        let uri = format!("{node_id}@{}", self.members[member].wire.address);
        self.members[member].uri = uri.parse().unwrap();
        self.restart(member).await;
    }

    /// All that a member was told since it began.
    pub fn member_events(&self, member: usize) -> Vec<Event> {
        let page = self.wallet(member).events(0, 1_000).unwrap();
        page.events.into_iter().map(|it| it.event).collect()
    }

    /// All that the LSP was told since it began.
    pub fn lsp_events(&self) -> Vec<Event> {
        let page = self.lsp().events(0, 1_000).unwrap();
        page.events.into_iter().map(|it| it.event).collect()
    }

    /// The LSP's side of all channels of a member.
    pub fn channels_with(&self, member: usize) -> Vec<ChannelInfo> {
        let peer = self.wallet(member).node_id();
        let mut all = self.lsp().channels();
        all.retain(|channel| channel.peer == peer);
        all
    }

    /// Lets a member buy a channel whose opening ends half-way: this message is the last of it, and
    /// does not get through its tap, nor does another of its kind until that lets everything pass.
    pub async fn half_buy(
        &self,
        member: usize,
        factory: &str,
        tap: &Tap,
        speaker: Side,
        said: u16,
    ) {
        const ANY_PRICE_MSAT: u64 = 100_000_000;
        let factories = self.wallet(member).factories();
        let quote = factories.quote_inbound(factory, 60_000, ANY_PRICE_MSAT);
        let quote = quote.await.unwrap();
        tap.set_rule(Box::new(move |_, message| match message.kind == said {
            true => Vec::new(),
            false => vec![message],
        }));
        factories.buy_inbound(&quote).await.unwrap();
        self.wait("the channel to be half open", async || {
            !tap.heard(speaker, said).is_empty()
        })
        .await;
    }

    /// Waits until no payment is on its way in a member's channels; what the member and the LSP have
    /// in them then, in msat.
    pub async fn at_rest(&self, member: usize) -> (u64, u64) {
        let mut sums = (0, 0);
        self.wait("the channels to be at rest", async || {
            let channels = self.channels_with(member);
            let pending = channels
                .iter()
                .map(|it| it.inbound_htlcs + it.outbound_htlcs);
            let theirs = channels.iter().map(|it| it.balance_msat).sum();
            let whole: u64 = channels.iter().map(|it| it.capacity_sat * 1_000).sum();
            sums = (self.balance_msat(member), theirs);
            pending.sum::<u32>() == 0 && sums.0 + sums.1 == whole
        })
        .await;
        sums
    }
}
