//! Members and LSPs that cheat in what they say, over real connections and on a real chain. Who is
//! honest runs the program that ships; a tap with both nodes' keys changes what the cheater says.
//!
//! Of new epochs and sales, beside what is here (C: `sdk/factory/tests`, the core alone):
//!
//! | attack | test |
//! |---|---|
//! | silence at any message, by either side | `epoch_silence`, `epochs/limbo`, C `epochs/limbo` |
//! | another content of a proposal, a leaf, a signature; a try or an epoch anew | `epoch_content`, C `epochs/refusals`, `epochs/disagreements` |
//! | preimages wrong, too few, or none | `epoch_silence`, C `epochs/refusals`, `epochs/lost_sales` |
//! | signed by all and kept back; completed against the promise | `epoch_silence`, `broken_promise`, C `epochs/limbo` |
//! | an older epoch on chain, by the LSP or a member, sold from, or with a revoked balance | `old_epochs`, `old_roots`, C `epochs/stale` |
//! | stock that was sold is taken after its delay | `sale` |
//! | another quote, acceptance or signature of a sale; one output sold twice | `sale_content`, C `sales/attacks` |
//! | a sale while the factory is being opened | `sale_content`, `selling`, C `sales/refusals` |
//! | a sale whose channel is dropped, and delivered or published all the same | `epochs/lost_sales`, C `epochs/lost_sales` |

mod breach;
mod broken_promise;
mod building;
mod channel;
mod epoch_content;
mod epoch_silence;
mod funding;
mod preimage;
mod revocation;
mod revoked;
mod sale;
mod sale_content;
mod tower;
mod unreadable;
mod withheld;
mod wrong_key;
