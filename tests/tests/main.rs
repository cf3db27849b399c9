//! Everything at once: real bitcoinds, wallets and LSPs with their own keys, stores and sockets, in
//! this process or in their own. One program, because most of its tests wait for others most of the
//! time: together they take a fraction of what they take in turn.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod adversary;
mod backup;
mod building_writes;
mod by_hand;
mod damaged_journal;
mod damaged_rows;
mod deadlines;
mod demo;
mod epoch_commands;
mod epoch_writes;
mod epochs;
mod exit_packages;
mod exits;
mod factory;
mod infra;
mod jit;
mod keyless_exit;
mod killed;
mod killed_lsp;
mod lsp_tower;
mod lsp_vanishes;
mod misfortunes;
mod old_epochs;
mod old_epochs_tower;
mod old_roots;
mod others;
mod outside;
mod outside_node;
mod payment_writes;
mod payments;
mod policy;
mod programs;
mod reorgs;
mod rest_api;
mod sale_writes;
mod scale;
mod selling;
mod silent_at_the_end;
mod silent_member;
mod timeout_policies;
mod watchtower;
