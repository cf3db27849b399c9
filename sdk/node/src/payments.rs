//! Payments as an application sees them: one entry for each hash, on disk.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::event::{Event, EventLog};
use crate::hosting::{Host, HostEvent};
use crate::store::{Store, StoreError};

const PRIMARY: &str = "superscalar";
const SECONDARY: &str = "payments";

/// Which way money goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// To us.
    Inbound,
    /// From us.
    Outbound,
}

/// How far a payment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PaymentStatus {
    /// An invoice that is not paid, or a payment on its way.
    Pending,
    /// Done, for good.
    Succeeded,
    /// Failed for good; nothing was paid.
    Failed,
}

/// One payment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payment {
    /// Its hash, hex.
    pub payment_hash: String,
    /// Which way.
    pub direction: Direction,
    /// How far.
    pub status: PaymentStatus,
    /// Amount without fees; for an unpaid invoice without amount, unknown.
    pub amount_msat: Option<u64>,
    /// Routing fee, once known; of a received payment, what the LSP kept of it for opening a
    /// channel.
    pub fee_msat: Option<u64>,
    /// Proof of payment, hex, once known.
    pub preimage: Option<String>,
    /// The invoice.
    pub invoice: Option<String>,
    /// Seconds since 1970 at which it began.
    pub created_at: u64,
}

impl Payment {
    /// A payment or an unpaid invoice that begins now.
    pub(crate) fn begin(
        payment_hash: String,
        direction: Direction,
        amount_msat: Option<u64>,
        invoice: Option<String>,
    ) -> Payment {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Payment {
            payment_hash,
            direction,
            status: PaymentStatus::Pending,
            amount_msat,
            fee_msat: None,
            preimage: None,
            invoice,
            created_at: now.map_or(0, |since| since.as_secs()),
        }
    }
}

impl Payment {
    /// Whether one of ours is done, or will be: a crash between our note and LDK's leaves one that
    /// nobody carries out.
    pub(crate) fn is_under_way(&self, host: &Host) -> bool {
        let hash = hex::decode(&self.payment_hash).ok();
        let hash = hash.and_then(|hash| hash.try_into().ok());
        match self.status {
            PaymentStatus::Succeeded => true,
            PaymentStatus::Failed => false,
            PaymentStatus::Pending => hash.is_some_and(|hash| host.is_paying(hash)),
        }
    }
}

/// All payments.
pub(crate) struct Payments {
    store: Arc<Store>,
}

impl Payments {
    pub(crate) fn new(store: Arc<Store>) -> Payments {
        Payments { store }
    }

    pub(crate) fn record(&self, payment: &Payment) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(payment).map_err(StoreError::corrupt)?;
        let key = &payment.payment_hash;
        self.store.set_value(PRIMARY, SECONDARY, key, &bytes)
    }

    /// Forgets an invoice that nobody will pay.
    pub(crate) fn forget(&self, payment_hash: &str) -> Result<(), StoreError> {
        self.store.remove_value(PRIMARY, SECONDARY, payment_hash)
    }

    pub(crate) fn get(&self, payment_hash: &str) -> Result<Option<Payment>, StoreError> {
        let bytes = self.store.value(PRIMARY, SECONDARY, payment_hash)?;
        let damaged =
            |error| StoreError::damaged(format_args!("{SECONDARY} {payment_hash}"), error);
        bytes
            .map(|bytes| serde_json::from_slice(&bytes).map_err(damaged))
            .transpose()
    }

    /// Newest first.
    pub(crate) fn all(&self) -> Result<Vec<Payment>, StoreError> {
        let mut payments = Vec::new();
        for key in self.store.keys(PRIMARY, SECONDARY)? {
            payments.extend(self.get(&key)?);
        }
        payments.sort_by_key(|payment| std::cmp::Reverse(payment.created_at));
        Ok(payments)
    }

    /// Tells and records what LDK says about a payment. The event comes first: after a crash in
    /// between it is told twice, never lost. A row that cannot be read is left as it is: what comes
    /// behind this event, the closing of a channel perhaps, must not wait for it.
    pub(crate) fn settle(&self, event: &HostEvent, log: &EventLog) -> Result<(), StoreError> {
        let Some((told, payment)) = self.judge(event)? else {
            return Ok(());
        };
        log.append(&told)?;
        let Some(payment) = payment else {
            return Ok(());
        };
        match self.get(&payment.payment_hash) {
            Err(error @ StoreError::Corrupt { .. }) => {
                tracing::error!(%error, "told and not recorded");
                Ok(())
            }
            _ => self.record(&payment),
        }
    }

    /// `None` if it was known or is about no payment.
    fn judge(&self, event: &HostEvent) -> Result<Option<(Event, Option<Payment>)>, StoreError> {
        let known = |hash: &[u8; 32], direction| -> Result<Payment, StoreError> {
            let hash = hex::encode(hash);
            let known = match self.get(&hash) {
                Err(StoreError::Corrupt { .. }) => None,
                known => known?,
            };
            Ok(known.unwrap_or_else(|| Payment::begin(hash, direction, None, None)))
        };
        let (mut payment, told) = match event {
            HostEvent::PaymentReceived {
                payment_hash,
                amount_msat,
                skimmed_msat,
            } => {
                let mut payment = known(payment_hash, Direction::Inbound)?;
                payment.amount_msat = Some(*amount_msat);
                payment.fee_msat = Some(*skimmed_msat).filter(|fee| *fee > 0);
                let told = Event::PaymentReceived {
                    payment_hash: payment.payment_hash.clone(),
                    amount_msat: *amount_msat,
                };
                (payment, told)
            }
            HostEvent::PaymentSent {
                payment_hash,
                preimage,
                fee_msat,
            } => {
                let mut payment = known(payment_hash, Direction::Outbound)?;
                payment.preimage = Some(hex::encode(preimage));
                payment.fee_msat = *fee_msat;
                let told = Event::PaymentSent {
                    payment_hash: payment.payment_hash.clone(),
                    preimage: hex::encode(preimage),
                    fee_msat: fee_msat.unwrap_or(0),
                };
                (payment, told)
            }
            HostEvent::PaymentFailed {
                payment_hash: Some(payment_hash),
                reason,
            } => {
                let mut payment = known(payment_hash, Direction::Outbound)?;
                if payment.status == PaymentStatus::Failed {
                    return Ok(None);
                }
                payment.status = PaymentStatus::Failed;
                let told = Event::PaymentFailed {
                    payment_hash: payment.payment_hash.clone(),
                    reason: reason.clone(),
                };
                return Ok(Some((told, Some(payment))));
            }
            HostEvent::PaymentForwarded {
                amount_msat,
                fee_msat,
                ..
            } => {
                let told = Event::PaymentForwarded {
                    amount_msat: *amount_msat,
                    fee_msat: fee_msat.unwrap_or(0),
                };
                return Ok(Some((told, None)));
            }
            _ => return Ok(None),
        };
        if payment.status == PaymentStatus::Succeeded {
            // LDK repeats itself after a crash.
            return Ok(None);
        }
        payment.status = PaymentStatus::Succeeded;
        Ok(Some((told, Some(payment))))
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::Network;

    use super::*;
    use crate::store::Identity;

    /// Money that arrives is told also where its row cannot be read: what LDK says next waits for it.
    #[test]
    fn a_damaged_row_is_named_and_left_as_it_is_and_holds_nothing_up() {
        let directory = tempfile::tempdir().unwrap();
        let identity = Identity {
            network: Network::Regtest,
            seed_tag: [3; 32],
        };
        let store = Arc::new(Store::open(directory.path(), &identity).unwrap());
        let payments = Payments::new(Arc::clone(&store));
        let log = EventLog::new(Arc::clone(&store));
        let (damaged, whole) = (hex::encode([1_u8; 32]), hex::encode([2_u8; 32]));
        let other = Payment::begin(whole.clone(), Direction::Outbound, Some(1), None);
        payments.record(&other).unwrap();
        let garbage = [0xff; 30];
        let write = store.set_value(PRIMARY, SECONDARY, &damaged, &garbage);
        write.unwrap();

        let is_named = |error: StoreError| match error {
            StoreError::Corrupt { detail } => detail.contains(&damaged),
            _ => false,
        };
        assert!(is_named(payments.get(&damaged).unwrap_err()));
        assert!(is_named(payments.all().unwrap_err()));
        let received = HostEvent::PaymentReceived {
            payment_hash: [1; 32],
            amount_msat: 5_000,
            skimmed_msat: 0,
        };
        payments.settle(&received, &log).unwrap();
        let told = log.after(0, 10).unwrap().events;
        let expected = Event::PaymentReceived {
            payment_hash: damaged.clone(),
            amount_msat: 5_000,
        };
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].event, expected);
        let left = store.value(PRIMARY, SECONDARY, &damaged).unwrap();
        assert_eq!(left.as_deref(), Some(&garbage[..]));
        assert_eq!(payments.get(&whole).unwrap(), Some(other));
    }
}
