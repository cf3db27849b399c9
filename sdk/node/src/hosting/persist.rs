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
use super::signer::FactorySigner;

/// LDK's writer of monitors, standing still where that gives up.
pub(super) struct Persister {
    writer: MonitorWriter,
    failed: watch::Sender<bool>,
}

impl Persister {
    /// `failed` turns true with the first update that could not be written.
    pub(super) fn new(writer: MonitorWriter, failed: watch::Sender<bool>) -> Persister {
        Persister { writer, failed }
    }

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
        self.or_stand_still(|| self.writer.persist_new_channel(name, monitor))
    }

    fn update_persisted_channel(
        &self,
        name: MonitorName,
        update: Option<&ChannelMonitorUpdate>,
        monitor: &Monitor,
    ) -> ChannelMonitorUpdateStatus {
        self.or_stand_still(|| self.writer.update_persisted_channel(name, update, monitor))
    }

    fn archive_persisted_channel(&self, name: MonitorName) {
        if !*self.failed.borrow() {
            Persist::<FactorySigner>::archive_persisted_channel(&self.writer, name);
        }
    }
}
