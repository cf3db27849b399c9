//! Hosts over real sockets, on channels whose leaves are not on chain.

mod chain;
mod node;
mod store;

mod opening;
mod payments;
