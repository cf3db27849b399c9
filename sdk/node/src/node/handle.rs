//! What the handles of a wallet or server share: the node while it runs, nothing when it does not.

use std::sync::{Arc, PoisonError, RwLock};

use super::Node;
use crate::wallet::WalletError;

/// A handle that outlives a stop holds none of what was stopped.
#[derive(Clone, Default)]
pub(crate) struct NodeHandle(Arc<RwLock<Option<Arc<Node>>>>);

impl NodeHandle {
    /// The running node, or [`WalletError::Stopped`].
    pub(crate) fn get(&self) -> Result<Arc<Node>, WalletError> {
        let node = self.0.read().unwrap_or_else(PoisonError::into_inner);
        node.clone().ok_or(WalletError::Stopped)
    }

    pub(crate) fn set(&self, node: Arc<Node>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(node);
    }

    pub(crate) fn take(&self) -> Option<Arc<Node>> {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}
