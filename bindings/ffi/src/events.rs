//! What an application is told.

use superscalar_sdk as sdk;

/// What a transaction that somebody published does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum TreeTxKind {
    /// Opens a node: the clock of its states begins to run.
    Kickoff,
    /// Puts a node's outputs on chain.
    State,
    /// Pays the members below a node after the factory's end.
    Distribution,
    /// Puts a channel on chain that was sold out of stock.
    Sale,
    /// Takes stock: the LSP after its delay, or the member what was revoked.
    Stock,
    /// Anything else that spends an output of the tree.
    Other,
}

/// Which epoch a transaction belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum TreeEdition {
    /// The newest, perhaps to others as well.
    Newest,
    /// One that a newer one has replaced.
    Older,
    /// One that was signed and that only the LSP could complete.
    Undecided,
}

impl From<sdk::TreeTxKind> for TreeTxKind {
    fn from(kind: sdk::TreeTxKind) -> TreeTxKind {
        match kind {
            sdk::TreeTxKind::Kickoff => TreeTxKind::Kickoff,
            sdk::TreeTxKind::State => TreeTxKind::State,
            sdk::TreeTxKind::Distribution => TreeTxKind::Distribution,
            sdk::TreeTxKind::Sale => TreeTxKind::Sale,
            sdk::TreeTxKind::Stock => TreeTxKind::Stock,
            _ => TreeTxKind::Other,
        }
    }
}

impl From<sdk::TreeEdition> for TreeEdition {
    fn from(edition: sdk::TreeEdition) -> TreeEdition {
        match edition {
            sdk::TreeEdition::Newest => TreeEdition::Newest,
            sdk::TreeEdition::Older => TreeEdition::Older,
            _ => TreeEdition::Undecided,
        }
    }
}

/// Something an application may want to know. Ids and hashes are lower-case hex.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum Event {
    /// A place in a factory was accepted; it is being built.
    FactoryJoined {
        /// The factory.
        factory: String,
        /// Our place in it.
        slot: u16,
    },
    /// Everything we need to leave alone is on disk; the funding is not yet buried.
    FactoryComplete {
        /// The factory.
        factory: String,
    },
    /// The factory exists: payments can be received.
    FactoryActive {
        /// The factory.
        factory: String,
        /// Height of the funding's block.
        height: u32,
    },
    /// The funding left the chain; payments wait until it is back.
    FactoryReorged {
        /// The factory.
        factory: String,
    },
    /// Building ended without a factory; nothing was lost.
    FactoryEnded {
        /// The factory.
        factory: String,
        /// Why.
        reason: String,
    },
    /// A message of the other side was refused and changed nothing.
    FactoryRefused {
        /// The factory.
        factory: String,
        /// The other side's node id.
        peer: String,
        /// Why.
        reason: String,
        /// The field that was wrong, empty if none.
        field: String,
    },
    /// A channel was bought and is held: it can receive.
    InboundDelivered {
        /// The factory.
        factory: String,
        /// Our place in it.
        slot: u16,
        /// Which channel of the place: 1 for the first that was bought.
        channel: u32,
        /// Its capacity in satoshi.
        capacity_sat: u64,
    },
    /// A channel that was bought is paid for, or was free.
    InboundPaid {
        /// The factory.
        factory: String,
        /// Our place in it.
        slot: u16,
        /// Which channel of the place.
        channel: u32,
        /// What it cost in millisatoshi.
        price_msat: u64,
    },
    /// The LSP wanted something else signed for an output that something was signed for. It was
    /// refused; an honest one never does it.
    FactoryEquivocation {
        /// The factory.
        factory: String,
        /// Our place in it.
        slot: u16,
        /// The channel that something was signed for.
        channel: u32,
        /// The other side's node id.
        peer: String,
    },
    /// All that we have in a place is in one channel of a new epoch now.
    EpochMoved {
        /// The factory.
        factory: String,
        /// Our place in it.
        slot: u16,
        /// The version of its path, 0 for the first.
        version: u32,
    },
    /// We have left a factory: the LSP has our place back.
    FactoryLeft {
        /// The factory.
        factory: String,
        /// The place that was ours.
        slot: u16,
        /// What was ours in its channels and stays behind, in millisatoshi.
        forgone_msat: u64,
    },
    /// Nothing comes of a new epoch; the channels carry payments as before.
    EpochEnded {
        /// The factory.
        factory: String,
        /// Which epoch of which node.
        epoch: String,
        /// Why.
        reason: String,
    },
    /// The LSP alone decides whether a new epoch that we have signed comes to be. Until then what is
    /// ours in the place's channels can be sent, and received again up to `most_msat`.
    EpochLimbo {
        /// The factory.
        factory: String,
        /// Our place in it.
        slot: u16,
        /// What the channels hold at most, in millisatoshi.
        most_msat: u64,
    },
    /// Everything of a new epoch is there but the acknowledgement of a watchtower, for longer than a
    /// round: the place's channels rest until one is back or none is configured any more.
    EpochUnguarded {
        /// The factory.
        factory: String,
        /// Our place in it.
        slot: u16,
        /// The version of its path in that epoch.
        version: u32,
    },
    /// Neither this wallet nor a watchtower has looked at the chain in time to be sure of answering
    /// what somebody may have opened. Keep it running, or add a tower.
    Unattended {
        /// The last block that was looked at in time.
        from_height: u32,
        /// How many came before the next look.
        blocks: u32,
    },
    /// Somebody else has published a transaction of our path, or has spent an output of it. Told
    /// once, when it is first seen.
    TreeTransaction {
        /// The factory.
        factory: String,
        /// The transaction.
        txid: String,
        /// What it does.
        kind: TreeTxKind,
        /// Which epoch it belongs to.
        edition: TreeEdition,
        /// The places below it.
        slots: Vec<u16>,
        /// The height of its block; none where it was in the mempool.
        height: Option<u32>,
    },
    /// A transaction that was told has left the chain. If it comes back it is told anew.
    TreeTransactionReorged {
        /// The factory.
        factory: String,
        /// The transaction.
        txid: String,
        /// The height it was at.
        height: u32,
    },
    /// The LSP wanted something else signed for an epoch that something was signed for, or for an
    /// older one. It was refused; an honest one never does it.
    EpochEquivocation {
        /// The factory.
        factory: String,
        /// Our place in it.
        slot: u16,
        /// What it wanted.
        epoch: String,
        /// Its node id.
        peer: String,
    },
    /// A payment arrived.
    PaymentReceived {
        /// Its hash.
        payment_hash: String,
        /// What arrived.
        amount_msat: u64,
    },
    /// A payment of ours arrived.
    PaymentSent {
        /// Its hash.
        payment_hash: String,
        /// Proof of payment.
        preimage: String,
        /// Routing fee.
        fee_msat: u64,
    },
    /// A payment of ours failed; nothing was paid.
    PaymentFailed {
        /// Its hash.
        payment_hash: String,
        /// Why.
        reason: String,
    },
    /// Leaving alone began.
    ExitStarted {
        /// The factory.
        factory: String,
        /// Why.
        reason: String,
    },
    /// A stock output of an older epoch came on chain, which the LSP had revoked: it is ours.
    StockTaken {
        /// The factory.
        factory: String,
        /// The place it was beside.
        slot: u16,
        /// The transaction that takes it.
        txid: String,
        /// What it pays us, in satoshi.
        amount_sat: u64,
        /// The height of its block.
        height: u32,
    },
    /// The LSP has published a commitment that it had revoked: what
    /// can be taken of it is claimed.
    RevokedCommitment {
        /// The channel: its outpoint `txid:vout` in a factory, else its id, hex.
        channel: String,
        /// The other side's node id.
        peer: String,
        /// The commitment.
        txid: String,
        /// The height of its block.
        height: u32,
        /// What can be taken beside our own balance, in satoshi, before fees.
        claimable_sat: u64,
    },
    /// An output of a closed channel is ours: it is swept into the wallet. Or a tower has taken one
    /// of a revoked commitment, straight into the wallet.
    ChannelPaidOut {
        /// The channel: its outpoint `txid:vout` in a factory, else its id, hex.
        channel: String,
        /// The output, `txid:vout`: of what a tower took the one on the commitment.
        outpoint: String,
        /// Its amount in satoshi, before the fee of its sweep; what a tower took, after its fee.
        amount_sat: u64,
    },
    /// The leaf is on chain: the rest is the channel's own closing.
    ExitLeafConfirmed {
        /// The factory.
        factory: String,
        /// Height of the leaf's block.
        height: u32,
    },
    /// A distribution paid us.
    ExitPaidOut {
        /// The factory.
        factory: String,
        /// Its output, `txid:vout`.
        outpoint: String,
        /// Its amount in satoshi.
        amount_sat: u64,
    },
    /// Something no wallet meets, or that is newer than this list.
    Other {
        /// Its name.
        kind: String,
        /// All of it as JSON.
        json: String,
    },
}

/// One event with its place in the stream.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct StoredEvent {
    /// Grows by one with every event; acknowledge with it.
    pub cursor: u64,
    /// What happened.
    pub event: Event,
}

/// Part of the stream of events.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct EventPage {
    /// In order.
    pub events: Vec<StoredEvent>,
    /// Whether events between the cursor asked for and the first of these are gone.
    pub gap: bool,
}

impl From<sdk::EventPage> for EventPage {
    fn from(page: sdk::EventPage) -> EventPage {
        let stored = |it: sdk::StoredEvent| StoredEvent {
            cursor: it.cursor,
            event: it.event.into(),
        };
        EventPage {
            events: page.events.into_iter().map(stored).collect(),
            gap: page.gap,
        }
    }
}

impl From<sdk::Event> for Event {
    fn from(event: sdk::Event) -> Event {
        use sdk::Event as Told;
        match event {
            Told::FactoryJoined { factory, slot } => Event::FactoryJoined { factory, slot },
            Told::FactoryComplete { factory } => Event::FactoryComplete { factory },
            Told::FactoryActive { factory, height } => Event::FactoryActive { factory, height },
            Told::FactoryReorged { factory } => Event::FactoryReorged { factory },
            Told::FactoryEnded {
                factory, reason, ..
            } => Event::FactoryEnded { factory, reason },
            Told::FactoryRefused {
                factory,
                peer,
                reason,
                field,
            } => Event::FactoryRefused {
                factory,
                peer,
                reason,
                field,
            },
            Told::PaymentReceived {
                payment_hash,
                amount_msat,
            } => Event::PaymentReceived {
                payment_hash,
                amount_msat,
            },
            Told::PaymentSent {
                payment_hash,
                preimage,
                fee_msat,
            } => Event::PaymentSent {
                payment_hash,
                preimage,
                fee_msat,
            },
            Told::PaymentFailed {
                payment_hash,
                reason,
            } => Event::PaymentFailed {
                payment_hash,
                reason,
            },
            Told::InboundDelivered {
                factory,
                slot,
                channel,
                capacity_sat,
            } => Event::InboundDelivered {
                factory,
                slot,
                channel,
                capacity_sat,
            },
            Told::InboundPaid {
                factory,
                slot,
                channel,
                price_msat,
            } => Event::InboundPaid {
                factory,
                slot,
                channel,
                price_msat,
            },
            Told::FactoryEquivocation {
                factory,
                slot,
                channel,
                peer,
            } => Event::FactoryEquivocation {
                factory,
                slot,
                channel,
                peer,
            },
            Told::EpochMoved {
                factory,
                slot,
                version,
            } => Event::EpochMoved {
                factory,
                slot,
                version,
            },
            Told::FactoryLeft {
                factory,
                slot,
                forgone_msat,
            } => Event::FactoryLeft {
                factory,
                slot,
                forgone_msat,
            },
            Told::EpochEnded {
                factory,
                epoch,
                reason,
                ..
            } => Event::EpochEnded {
                factory,
                epoch,
                reason,
            },
            Told::EpochLimbo {
                factory,
                slot,
                most_msat,
            } => Event::EpochLimbo {
                factory,
                slot,
                most_msat,
            },
            Told::EpochUnguarded {
                factory,
                slot,
                version,
            } => Event::EpochUnguarded {
                factory,
                slot,
                version,
            },
            Told::Unattended {
                from_height,
                blocks,
            } => Event::Unattended {
                from_height,
                blocks,
            },
            Told::TreeTransaction {
                factory,
                txid,
                kind,
                edition,
                slots,
                height,
            } => Event::TreeTransaction {
                factory,
                txid,
                kind: kind.into(),
                edition: edition.into(),
                slots,
                height,
            },
            Told::TreeTransactionReorged {
                factory,
                txid,
                height,
            } => Event::TreeTransactionReorged {
                factory,
                txid,
                height,
            },
            Told::EpochEquivocation {
                factory,
                slot,
                epoch,
                peer,
            } => Event::EpochEquivocation {
                factory,
                slot,
                epoch,
                peer,
            },
            Told::StockTaken {
                factory,
                slot,
                txid,
                amount_sat,
                height,
            } => Event::StockTaken {
                factory,
                slot,
                txid,
                amount_sat,
                height,
            },
            Told::RevokedCommitment {
                channel,
                peer,
                txid,
                height,
                claimable_sat,
            } => Event::RevokedCommitment {
                channel,
                peer,
                txid,
                height,
                claimable_sat,
            },
            Told::ChannelPaidOut {
                channel,
                outpoint,
                amount_sat,
            } => Event::ChannelPaidOut {
                channel,
                outpoint,
                amount_sat,
            },
            Told::ExitStarted { factory, reason } => Event::ExitStarted { factory, reason },
            Told::ExitLeafConfirmed { factory, height } => {
                Event::ExitLeafConfirmed { factory, height }
            }
            Told::ExitPaidOut {
                factory,
                outpoint,
                amount_sat,
            } => Event::ExitPaidOut {
                factory,
                outpoint,
                amount_sat,
            },
            other => {
                // Serialising an event does not fail: it was stored that way.
                let json = serde_json::to_value(&other).unwrap_or_default();
                let kind = json["type"].as_str().unwrap_or_default().to_owned();
                let json = json.to_string();
                Event::Other { kind, json }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_without_a_form_of_its_own_is_not_lost() {
        let event = Event::from(sdk::Event::FactorySigning {
            factory: "f".into(),
        });
        let Event::Other { kind, json } = event else {
            panic!("{event:?}");
        };
        assert_eq!(kind, "factory_signing");
        assert_eq!(json, r#"{"factory":"f","type":"factory_signing"}"#);
    }
}
