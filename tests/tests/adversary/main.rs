//! Members and LSPs that cheat in what they say, over real connections and on a real chain. Who is
//! honest runs the program that ships; a tap with both nodes' keys changes what the cheater says.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod building;
mod channel;
mod epoch_content;
mod epoch_silence;
mod funding;
mod preimage;
mod revocation;
mod revoked;
mod sale;
mod tower;
mod unreadable;
mod withheld;
