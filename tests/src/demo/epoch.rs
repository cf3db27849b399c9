//! A new epoch in the demo: Carol's channels become one, and later an LSP with a disk from before that
//! brings the old state on chain.
//!
//! What always holds: the cheat runs the SDK as it is, on what the LSP had written; it is taught
//! nothing.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bitcoin::Txid;
use superscalar_sdk::{
    EpochRequest, Event, ExitMode, Lsp, LspBuilder, Mnemonic, SeatInfo, TreeNodeInfo,
};
use tempfile::TempDir;

use super::progress::Progress;
use super::published::Published;
use super::steps::{Built, CAROL, MAX_EXIT_BLOCKS, Network};
use super::table::thousands;
use super::tree;
use crate::network::chain_config;
use crate::processes::WalletProcess;

/// What is left of the time before the merge.
pub(super) struct Merged {
    disk: TempDir,
    tree: Vec<TreeNodeInfo>,
}

impl Network {
    /// The leaf of Carol and Dave gets a new epoch, in which what Carol has bought is part of her one
    /// channel. `built` is then as the LSP tells it afterwards.
    pub(super) fn merge(&mut self, progress: &mut Progress, built: &mut Built) -> Result<Merged> {
        let disk = self.copy_disk(progress)?;
        let height = self.chain.height()?;
        let before_msat = self.holds(CAROL)?;
        let factory = built.info.factory.clone();
        let slot = built.slots[2];
        let (lsp, carol, dave) = (&self.lsp, &self.members[2], &self.members[3]);
        progress.step("Carol's two channels become one", |progress| {
            let request = EpochRequest {
                slot,
                ..EpochRequest::default()
            };
            lsp.begin_epoch(&factory, &request)?;
            progress.wait("everybody to be in the new epoch", || {
                let events = lsp.events(0, 0)?.events.into_iter();
                let mut ended = events.filter(|it| matches!(it.event, Event::EpochEnded { .. }));
                let ended = ended.next();
                ensure!(ended.is_none(), "the epoch ended: {ended:?}");
                Ok(seat(carol, &factory)?.version == 1 && seat(dave, &factory)?.version == 1)
            })?;
            Ok((
                (),
                "a new state of her leaf; nothing on chain".to_owned(),
                height,
            ))
        })?;
        self.settled(progress)?;
        ensure!(
            self.chain.mempool()?.is_empty(),
            "an epoch leaves the chain alone"
        );
        ensure!(self.chain.height()? == height, "and waits for no block");
        ensure!(
            self.holds(CAROL)? == before_msat,
            "and moves no millisatoshi"
        );
        let moved = seat(&self.members[2], &factory)?;
        ensure!(
            moved.sold.is_empty(),
            "what was bought is part of the channel"
        );
        let tree = std::mem::replace(&mut built.tree, self.lsp.tree(&factory)?);
        built.info = self.lsp.factory(&factory)?;
        Ok(Merged { disk, tree })
    }

    /// What the LSP has on disk now, as somebody keeps it who means to use it later.
    fn copy_disk(&mut self, progress: &mut Progress) -> Result<TempDir> {
        let (chain, lsp, members) = (&self.chain, &mut self.lsp, &self.members);
        progress.step("copy the LSP's disk and start it again", |progress| {
            let copy = TempDir::new()?;
            lsp.kill();
            copy_files(&lsp.directory().join("data"), copy.path())?;
            lsp.restart()?;
            progress.wait("everybody to be back", || {
                let mut back = lsp.channels()?.iter().all(|it| it.usable);
                for member in members {
                    back = back && member.status()?.lsp_connected;
                }
                Ok(back)
            })?;
            Ok((copy, "for the end".to_owned(), chain.height()?))
        })
    }

    /// The LSP's old disk brings Carol's old leaf on chain while her wallet runs; gives the old leaf's
    /// id.
    pub(super) fn cheat(
        &self,
        progress: &mut Progress,
        built: &Built,
        merged: &Merged,
        carols: &Published,
    ) -> Result<Txid> {
        let newest = carols.path.last().context("a path")?.txid;
        let old = tree::path(&merged.tree, built.slots[2])?;
        let old = old.last().context("a path")?.txid;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        let chain = &self.chain;
        progress.step(
            "the LSP's old disk brings Carol's old state on chain",
            |progress| {
                let mnemonic = std::fs::read_to_string(self.lsp.directory().join("mnemonic"))?;
                let cheat = runtime.block_on(self.open(&mnemonic, merged.disk.path()))?;
                let place = format!("{}/{}", built.info.factory, built.slots[2]);
                runtime.block_on(cheat.exit().start(&place, ExitMode::Leave))?;
                let begun = chain.height()?;
                while chain.confirmed_at(newest)?.is_none() {
                    let mined = chain.height()? - begun;
                    ensure!(
                        mined < MAX_EXIT_BLOCKS,
                        "{mined} blocks without Carol's state"
                    );
                    progress.go_on()?;
                    chain.mine(1)?;
                    runtime.block_on(cheat.sync())?;
                    self.members[2].sync()?;
                }
                runtime.block_on(cheat.stop());
                let mined = thousands(u64::from(chain.height()? - begun));
                let result =
                    format!("Carol's wallet was first with the newest, after {mined} blocks");
                Ok((old, result, chain.height()?))
            },
        )
    }

    async fn open(&self, mnemonic: &str, disk: &Path) -> Result<std::sync::Arc<Lsp>> {
        /// It looks for blocks when it is told to.
        const NEVER: Duration = Duration::from_secs(86_400);
        let lsp = LspBuilder::new(bitcoin::Network::Regtest, Mnemonic::parse(mnemonic.trim())?)
            .storage_dir(disk.into())
            .chain_source(chain_config(&self.chain))
            .listen(([127, 0, 0, 1], 0).into())
            .poll_interval(NEVER);
        Ok(lsp.start().await?)
    }
}

fn seat(wallet: &WalletProcess, factory: &str) -> Result<SeatInfo> {
    let mut all = wallet.factories()?.into_iter();
    let info = all.find(|it| it.factory == factory);
    let mut seats = info.context("the factory")?.seats.into_iter();
    seats.next().context("a place")
}

fn copy_files(from: &Path, to: &Path) -> Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}
