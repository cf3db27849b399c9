//! Monitors on disk, or nothing goes on.
//!
//! What always holds: where a monitor could not be written, its channel stands still until the next
//! start. LDK would take the process down with it; here the store has failed for good, or is being
//! closed, and a stop follows.

use lightning::chain::ChannelMonitorUpdateStatus;
use lightning::chain::chainmonitor::Persist;
use lightning::chain::channelmonitor::ChannelMonitorUpdate;
use lightning::util::persist::MonitorName;

use super::ldk::{Monitor, MonitorWriter};
use super::signer::FactorySigner;

/// LDK's writer of monitors, standing still where that gives up.
pub(super) struct Persister(pub(super) MonitorWriter);

impl Persist<FactorySigner> for Persister {
    fn persist_new_channel(
        &self,
        name: MonitorName,
        monitor: &Monitor,
    ) -> ChannelMonitorUpdateStatus {
        standing_still(self.0.persist_new_channel(name, monitor))
    }

    fn update_persisted_channel(
        &self,
        name: MonitorName,
        update: Option<&ChannelMonitorUpdate>,
        monitor: &Monitor,
    ) -> ChannelMonitorUpdateStatus {
        standing_still(self.0.update_persisted_channel(name, update, monitor))
    }

    fn archive_persisted_channel(&self, name: MonitorName) {
        Persist::<FactorySigner>::archive_persisted_channel(&self.0, name);
    }
}

/// An update that is in progress for ever: nothing that depends on it is sent.
fn standing_still(written: ChannelMonitorUpdateStatus) -> ChannelMonitorUpdateStatus {
    match written {
        ChannelMonitorUpdateStatus::UnrecoverableError => ChannelMonitorUpdateStatus::InProgress,
        written => written,
    }
}
