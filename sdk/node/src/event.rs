//! What an application is told: stored with a cursor, in order, none lost by a crash.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::store::{Batch, Store, StoreError};

/// Something an application may want to know. Ids and hashes are lower-case hex.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// A place in a factory was accepted; it is being built.
    FactoryJoined {
        /// The factory.
        factory: String,
        /// Our place in it.
        slot: u16,
    },
    /// LSP: terms are fixed, all members are asked to sign.
    FactorySigning {
        /// The factory.
        factory: String,
    },
    /// Everything we need to leave alone is on disk; the funding is not yet buried.
    FactoryComplete {
        /// The factory.
        factory: String,
    },
    /// LSP: the funding transaction is published.
    FactoryPublished {
        /// The factory.
        factory: String,
        /// Its output on chain, `txid:vout`.
        funding: String,
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
    /// The funding has not confirmed for a day. Nothing is given up because of it.
    FactoryUnfunded {
        /// The factory.
        factory: String,
    },
    /// The LSP gave a factory up when it was signed and not yet funded. What was signed is kept, as
    /// the LSP could still publish it; the wallet takes the next offer.
    FactoryDormant {
        /// The factory.
        factory: String,
        /// Why.
        reason: String,
    },
    /// Building ended without a factory; nothing was lost.
    FactoryEnded {
        /// The factory.
        factory: String,
        /// Why.
        reason: String,
        /// LSP: the slots that were silent or at fault.
        at_fault: Vec<u16>,
    },
    /// The journal of a factory cannot be read. Nothing moves in it, its bytes are kept as they
    /// are; all other factories run. Told with every start.
    FactoryDamaged {
        /// The factory.
        factory: String,
        /// What is wrong with it.
        detail: String,
    },
    /// Something that towers are to look after cannot be read from the database, and can be given to
    /// none of them. One that has acknowledged it keeps it; payments and exits go on. Told with
    /// every start.
    AppointmentDamaged {
        /// Its row in the database.
        row: String,
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
    /// A channel was sold out of the stock beside ours. A wallet can receive on it; an LSP forwards
    /// into it as soon as it is paid for.
    InboundDelivered {
        /// The factory.
        factory: String,
        /// The place in it.
        slot: u16,
        /// Which channel of the place: 1 for the first that was sold.
        channel: u32,
        /// Its capacity in satoshi.
        capacity_sat: u64,
    },
    /// A channel that was sold is paid for, or was free.
    InboundPaid {
        /// The factory.
        factory: String,
        /// The place in it.
        slot: u16,
        /// Which channel of the place.
        channel: u32,
        /// What it cost in millisatoshi.
        price_msat: u64,
    },
    /// Neither this wallet nor a tower has looked at the chain in time to be sure of answering what
    /// somebody may have opened: half a step of its factories. Keep it running, or add a tower.
    Unattended {
        /// The last block that was looked at in time.
        from_height: u32,
        /// How many came before the next look.
        blocks: u32,
    },
    /// LSP: a signed sale is not delivered, because somebody has begun to open the factory.
    InboundWithheld {
        /// The factory.
        factory: String,
        /// The place in it.
        slot: u16,
        /// Which channel of the place.
        channel: u32,
    },
    /// The other side wanted something else signed for an output that something was signed for. It
    /// was refused and is worth telling: an honest one never does.
    FactoryEquivocation {
        /// The factory.
        factory: String,
        /// The place in it.
        slot: u16,
        /// The channel that something was signed for.
        channel: u32,
        /// The other side's node id.
        peer: String,
    },
    /// All that is in a place is one channel of a new epoch now, and what it had before is retired. A
    /// wallet is told of its own place, an LSP of each.
    EpochMoved {
        /// The factory.
        factory: String,
        /// The place in it.
        slot: u16,
        /// The version of its path, 0 for the first.
        version: u32,
    },
    /// We have left a factory: the LSP has our place back. Told after its
    /// [`EpochMoved`](Self::EpochMoved).
    FactoryLeft {
        /// The factory.
        factory: String,
        /// The place that was ours.
        slot: u16,
        /// What was ours in its channels and stays behind, in millisatoshi, when the departure was
        /// signed: at most what [`EpochConsent`](crate::EpochConsent) allowed. What was spent of it
        /// since, while another member kept the epoch waiting, is not taken off.
        forgone_msat: u64,
    },
    /// LSP: a new epoch is signed by all; members are switching.
    EpochSigned {
        /// The factory.
        factory: String,
        /// Which epoch of which node.
        epoch: String,
    },
    /// Nothing comes of a new epoch; the channels carry payments as before. A wallet that had signed
    /// it is in limbo all the same, see [`EpochLimbo`](Self::EpochLimbo).
    EpochEnded {
        /// The factory.
        factory: String,
        /// Which epoch of which node.
        epoch: String,
        /// Why.
        reason: String,
        /// LSP: the slots that were silent or at fault.
        at_fault: Vec<u16>,
    },
    /// LSP: members are silent after others have signed. It can wait for them, or abandon the epoch
    /// for good.
    EpochHangs {
        /// The factory.
        factory: String,
        /// Which epoch of which node.
        epoch: String,
        /// Who is waited for.
        silent: Vec<u16>,
    },
    /// The LSP alone decides whether a new epoch that we have signed comes to be. Until it does, or a
    /// newer one is switched to, what is ours in the place's channels never exceeds what it was when
    /// we signed: it can be sent, and received again up to that.
    EpochLimbo {
        /// The factory.
        factory: String,
        /// Our place in it.
        slot: u16,
        /// What the channels hold at most, in millisatoshi.
        most_msat: u64,
    },
    /// Everything of a new epoch is there but the acknowledgement of a tower, for longer than a round:
    /// the place's channels rest until one of ours is back or none is configured any more.
    EpochUnguarded {
        /// The factory.
        factory: String,
        /// Our place in it.
        slot: u16,
        /// The version of its path in that epoch.
        version: u32,
    },
    /// The LSP wanted something else signed for an epoch that something was signed for, or for an
    /// older one. It was refused and is worth telling: an honest one never does.
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
    /// A payment was forwarded.
    PaymentForwarded {
        /// What went out.
        amount_msat: u64,
        /// What was earned.
        fee_msat: u64,
    },
    /// Somebody else has published a transaction of a factory's tree, or has spent an output of it.
    /// Told once, when it is first seen; what we publish ourselves is not told. A wallet is told of
    /// its own path, an LSP of all.
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
        /// The height of its block; `None` where it was in the mempool.
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
    /// A stock output of an older epoch came on chain, which the LSP had revoked, and all of it was
    /// taken for the member, by itself or by a tower. Told when that is in a block, in place of a
    /// [`TreeTransaction`](Self::TreeTransaction) that would tell of it first there; a wallet is told
    /// of its own place, an LSP of what it has lost. If it leaves the chain a
    /// [`TreeTransactionReorged`](Self::TreeTransactionReorged) says so.
    StockTaken {
        /// The factory.
        factory: String,
        /// The place it was beside.
        slot: u16,
        /// The transaction that takes it.
        txid: String,
        /// What it pays the member, in satoshi.
        amount_sat: u64,
        /// The height of its block.
        height: u32,
    },
    /// The other side of a channel has published a commitment that it had revoked, and there is
    /// something to take. What this node or a tower takes of it is told as
    /// [`ChannelPaidOut`](Self::ChannelPaidOut). Told when its block is seen, also at a start, and
    /// again if it comes back after a reorg or this node is killed soon after; where a tower took
    /// everything while this node was away only what it took is told.
    RevokedCommitment {
        /// The channel: its outpoint `txid:vout` in a factory, else its id, hex.
        channel: String,
        /// The other side's node id.
        peer: String,
        /// The commitment.
        txid: String,
        /// The height of its block.
        height: u32,
        /// What can be taken beside our own balance, in satoshi, before fees: the other side's
        /// balance and payments under way.
        claimable_sat: u64,
    },
    /// An output of a closed channel is ours, its delay over or its claim buried: it is swept into
    /// the wallet. Or a tower has taken one of a revoked commitment, straight into the wallet: told
    /// once, when that is in a block.
    ChannelPaidOut {
        /// The channel: its outpoint `txid:vout` in a factory, else its id, hex.
        channel: String,
        /// The output, `txid:vout`: of what a tower took the one on the commitment.
        outpoint: String,
        /// Its amount in satoshi, before the fee of its sweep; what a tower took, after its fee.
        amount_sat: u64,
    },
    /// Leaving alone began.
    ExitStarted {
        /// The factory.
        factory: String,
        /// Why.
        reason: String,
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
}

/// One event with its place in the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredEvent {
    /// Grows by one with every event; acknowledge with it.
    pub cursor: u64,
    /// What happened.
    pub event: Event,
}

/// Part of the stream of events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventPage {
    /// In order.
    pub events: Vec<StoredEvent>,
    /// Whether events between the cursor asked for and the first of these are gone.
    pub gap: bool,
}

/// What a transaction that somebody published does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TreeEdition {
    /// The newest, perhaps to others as well.
    Newest,
    /// One that a newer one has replaced.
    Older,
    /// One that was signed and that only the LSP could complete.
    Undecided,
}

/// The stream of events, on disk.
pub(crate) struct EventLog {
    store: Arc<Store>,
    newest: watch::Sender<u64>,
}

impl EventLog {
    pub(crate) fn new(store: Arc<Store>) -> EventLog {
        EventLog {
            store,
            newest: watch::Sender::new(0),
        }
    }

    pub(crate) fn append(&self, event: &Event) -> Result<(), StoreError> {
        let payload = serde_json::to_vec(event).map_err(StoreError::corrupt)?;
        let cursor = self.store.append_event(&payload)?;
        self.newest.send_replace(cursor);
        Ok(())
    }

    /// Appends events and sets a setting, both or neither.
    pub(crate) fn append_with(
        &self,
        events: &[Event],
        setting: &str,
        value: &[u8],
    ) -> Result<(), StoreError> {
        let mut batch = Batch::new().setting(setting, value);
        for event in events {
            batch = batch.event(&serde_json::to_vec(event).map_err(StoreError::corrupt)?);
        }
        let committed = self.store.commit(&batch)?;
        if let Some(cursor) = committed.cursors.last() {
            self.newest.send_replace(*cursor);
        }
        Ok(())
    }

    /// An event that cannot be read is named, and kept as it is; those behind it can be read.
    pub(crate) fn after(&self, cursor: u64, limit: u32) -> Result<EventPage, StoreError> {
        let page = self.store.events_after(cursor, limit)?;
        let events = page.events.into_iter().map(|stored| {
            Ok(StoredEvent {
                cursor: stored.cursor,
                event: serde_json::from_slice(&stored.payload).map_err(|error| {
                    StoreError::damaged(format!("event {}", stored.cursor), error)
                })?,
            })
        });
        Ok(EventPage {
            events: events.collect::<Result<_, StoreError>>()?,
            gap: page.missed_through.is_some(),
        })
    }

    pub(crate) fn acknowledge(&self, cursor: u64) -> Result<(), StoreError> {
        self.store.acknowledge_events(cursor)
    }

    pub(crate) fn acknowledged(&self) -> Result<u64, StoreError> {
        self.store.events_acknowledged()
    }

    /// Wakes everyone who waits for an event, to find the store closed.
    pub(crate) fn wake(&self) {
        self.newest.send_modify(|_| ());
    }

    /// Changes with every new event.
    pub(crate) fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::Network;

    use super::*;
    use crate::store::Identity;

    fn event(number: u32) -> Event {
        Event::FactoryReorged {
            factory: number.to_string(),
        }
    }

    #[test]
    fn what_is_acknowledged_stays_so_and_the_rest_is_told_again() {
        let directory = tempfile::tempdir().unwrap();
        let open = || {
            let identity = Identity {
                network: Network::Regtest,
                seed_tag: [7; 32],
            };
            let store = Store::open(directory.path(), &identity).unwrap();
            EventLog::new(Arc::new(store))
        };
        let log = open();
        for number in 1..=3 {
            log.append(&event(number)).unwrap();
        }
        assert_eq!(*log.newest().borrow(), 3);
        log.acknowledge(2).unwrap();
        drop(log);

        let log = open();
        assert_eq!(log.acknowledged().unwrap(), 2);
        let third = StoredEvent {
            cursor: 3,
            event: event(3),
        };
        let page = log.after(2, 10).unwrap();
        assert_eq!((page.events, page.gap), (vec![third.clone()], false));
        let page = log.after(1, 10).unwrap();
        assert_eq!((page.events, page.gap), (vec![third], true));
        // Whoever waits is woken for the last of several.
        log.append_with(&[event(4), event(5)], "setting", &[1])
            .unwrap();
        assert_eq!(*log.newest().borrow(), 5);
        assert_eq!(log.after(0, 10).unwrap().events.len(), 3);
    }
}
