//! Both timeout policies to their end on a real chain: heights to the block, amounts to the satoshi,
//! and whoever cheats ends with no more than was its own.

mod conservative;
mod layers;
mod lsp_cheats;
mod lsp_late;
mod lsp_reclaims;
mod members_reclaim;
mod pending;
mod reorg;

use superscalar_sdk::{BuildRequest, Preset};
use superscalar_tests::network::regtest_factory;

/// Mainnet's delays: a state 96 blocks after its kickoff, a distribution 96 + 144.
const STATE_BLOCKS: u32 = 96;
const DISTRIBUTION_BLOCKS: u32 = STATE_BLOCKS + 144;

/// A factory under mainnet's delays, as short as its invoices allow.
fn mainnet(members: u16, shape: &[u8]) -> BuildRequest {
    BuildRequest {
        preset: Some(Preset::Mainnet),
        shape: Some(shape.to_vec()),
        life_blocks: 1_300,
        ..regtest_factory(members)
    }
}
