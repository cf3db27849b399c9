//! When a peer proves that our state is an old one.
//!
//! Restored from a copy that was not the newest, a channel's own commitment may be a revoked one:
//! publishing it forfeits everything. A living peer proves it in `channel_reestablish`; LDK says so
//! in its log and panics. What always holds: the proof is on disk before that panic, and from then
//! on nothing leaves that spends a leaf. Outputs of the other side's commitment are still claimed.

use std::fmt;

use lightning::util::logger::Level;
use tokio::sync::watch;

use super::Store;

const PRIMARY: &str = "superscalar";
const KEY: &str = "old_state";
/// How LDK's last words begin, in the version that is pinned; an end-to-end test hears them.
const LAST_WORDS: &str = "We have fallen behind";
const SPEAKER: &str = "lightning::ln::channel";

/// Whether our state was proven old.
pub(super) struct OldState {
    store: Store,
    proven: watch::Sender<bool>,
}

impl OldState {
    pub(super) fn load(store: Store) -> Result<OldState, lightning::io::Error> {
        let known = store.list(PRIMARY, "")?.iter().any(|key| key == KEY);
        Ok(OldState {
            store,
            proven: watch::Sender::new(known),
        })
    }

    pub(super) fn is_proven(&self) -> bool {
        *self.proven.borrow()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<bool> {
        self.proven.subscribe()
    }

    /// Hears everything LDK logs.
    pub(super) fn hear(&self, level: Level, module: &str, words: &fmt::Arguments<'_>) {
        let said = || words.to_string().starts_with(LAST_WORDS);
        if level != Level::Error || module != SPEAKER || !said() {
            return;
        }
        // Said again with the next connection, should this fail.
        if let Err(error) = self.store.write(PRIMARY, "", KEY, vec![1]) {
            tracing::error!(%error, "cannot record that our state is an old one");
        }
        self.proven.send_replace(true);
    }
}
