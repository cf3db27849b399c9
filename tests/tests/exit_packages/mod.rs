//! Leaving while blocks cost more than the tree pays: own coins, spent through the anchors, bring
//! each transaction in as a package. On a bitcoind whose mempool is full, amounts to the satoshi.

mod rush;
mod spending;
mod spikes;
