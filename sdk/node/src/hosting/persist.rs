//! Monitors on disk, or nothing goes on.
//!
//! What always holds: after one update that could not be written no other is, so that what is on
//! disk has no gap; every channel stands still until the next start. LDK would take the process down
//! with it; here the node is told, and stops.

use lightning::chain::ChannelMonitorUpdateStatus;
use lightning::chain::chainmonitor::Persist;
use lightning::chain::channelmonitor::ChannelMonitorUpdate;
use lightning::util::persist::MonitorName;
use tokio::sync::watch;

use super::ldk::{Monitor, MonitorWriter};
use super::revoked::Revocable;
use super::signer::FactorySigner;

/// LDK's writer of monitors, standing still where that gives up.
pub(super) struct Persister {
    writer: MonitorWriter,
    revocable: Option<Revocable>,
    gate: Gate,
}

impl Persister {
    /// `failed` turns true with the first update that could not be written.
    pub(super) fn new(
        writer: MonitorWriter,
        revocable: Option<Revocable>,
        failed: watch::Sender<bool>,
    ) -> Persister {
        let gate = Gate { failed };
        Persister {
            writer,
            revocable,
            gate,
        }
    }
}

/// Closed by the first update that could not be written.
struct Gate {
    failed: watch::Sender<bool>,
}

impl Gate {
    /// An update that is in progress for ever: nothing that depends on it is sent.
    fn or_stand_still(
        &self,
        write: impl FnOnce() -> ChannelMonitorUpdateStatus,
    ) -> ChannelMonitorUpdateStatus {
        if *self.failed.borrow() {
            return ChannelMonitorUpdateStatus::InProgress;
        }
        match write() {
            ChannelMonitorUpdateStatus::UnrecoverableError => {
                self.failed.send_replace(true);
                ChannelMonitorUpdateStatus::InProgress
            }
            written => written,
        }
    }
}

impl Persist<FactorySigner> for Persister {
    fn persist_new_channel(
        &self,
        name: MonitorName,
        monitor: &Monitor,
    ) -> ChannelMonitorUpdateStatus {
        let write = || {
            if let Some(revocable) = &self.revocable {
                revocable.begin(&name, monitor);
            }
            self.writer.persist_new_channel(name, monitor)
        };
        self.gate.or_stand_still(write)
    }

    fn update_persisted_channel(
        &self,
        name: MonitorName,
        update: Option<&ChannelMonitorUpdate>,
        monitor: &Monitor,
    ) -> ChannelMonitorUpdateStatus {
        // First: an update that was not written is told again, one that was is not.
        let write = || {
            if let Some(revocable) = &self.revocable {
                revocable.update(&name, update, monitor);
            }
            self.writer.update_persisted_channel(name, update, monitor)
        };
        self.gate.or_stand_still(write)
    }

    fn archive_persisted_channel(&self, name: MonitorName) {
        if !*self.gate.failed.borrow() {
            Persist::<FactorySigner>::archive_persisted_channel(&self.writer, name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ChannelMonitorUpdateStatus::{Completed, InProgress, UnrecoverableError};

    #[test]
    fn after_one_that_could_not_be_written_nothing_is() {
        let gate = Gate {
            failed: watch::Sender::new(false),
        };
        assert_eq!(gate.or_stand_still(|| Completed), Completed);
        assert!(!*gate.failed.borrow());
        assert_eq!(gate.or_stand_still(|| UnrecoverableError), InProgress);
        assert!(*gate.failed.borrow());
        let later = gate.or_stand_still(|| panic!("it was written"));
        assert_eq!(later, InProgress);
    }
}
