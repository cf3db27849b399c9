//! Members whose wallets have a backup on a disk of their own, which can be taken away.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bitcoin::Network;
use futures_util::future::join_all;
use superscalar_regtest::RegtestNode;
use superscalar_sdk::backup::{Creation, Directory, RemoteError, RemoteStore};
use superscalar_sdk::{BackupState, Begin, Lsp, LspBuilder, Mnemonic, Wallet, WalletError};
use tempfile::TempDir;

use crate::network::{POLL_INTERVAL, TestNetwork, chain_config, sale_policy};

/// A disk for one backup.
pub struct Remote {
    disk: TempDir,
    writes_left: Arc<AtomicUsize>,
}

/// What is on it, until it is full.
struct Limited {
    directory: Directory,
    writes_left: Arc<AtomicUsize>,
}

impl RemoteStore for Limited {
    fn create(&self, name: &str, bytes: &[u8]) -> Result<Creation, RemoteError> {
        let less = |left: usize| left.checked_sub(1);
        let room = self
            .writes_left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
        match room {
            Ok(_) => self.directory.create(name, bytes),
            Err(_) => Err(RemoteError::new("the disk is full".to_owned())),
        }
    }

    fn get(&self, name: &str) -> Result<Option<Vec<u8>>, RemoteError> {
        self.directory.get(name)
    }

    fn list(&self) -> Result<Vec<String>, RemoteError> {
        self.directory.list()
    }

    fn delete(&self, name: &str) -> Result<(), RemoteError> {
        self.directory.delete(name)
    }

    fn describe(&self) -> String {
        self.directory.describe()
    }
}

impl Remote {
    /// An empty one.
    pub fn new() -> Remote {
        let disk = TempDir::new().unwrap();
        std::fs::create_dir(disk.path().join("mounted")).unwrap();
        Remote {
            disk,
            writes_left: Arc::new(AtomicUsize::new(usize::MAX)),
        }
    }

    pub(crate) fn store(&self) -> Arc<dyn RemoteStore> {
        Arc::new(Limited {
            directory: Directory::new(self.mounted()),
            writes_left: Arc::clone(&self.writes_left),
        })
    }

    /// There is room for so many entries more.
    pub fn full_after(&self, writes: usize) {
        self.writes_left.store(writes, Ordering::SeqCst);
    }

    /// There is room for everything.
    pub fn make_room(&self) {
        self.full_after(usize::MAX);
    }

    /// Nothing can be read or written from now on.
    pub fn unmount(&self) {
        std::fs::rename(self.mounted(), self.away()).unwrap();
    }

    /// It is there again.
    pub fn mount(&self) {
        std::fs::rename(self.away(), self.mounted()).unwrap();
    }

    /// A copy of what is on it now.
    pub fn copy(&self) -> TempDir {
        copy_of(&self.mounted())
    }

    /// Makes such a copy whenever it is called, from any task.
    pub fn copier(&self) -> impl Fn() -> TempDir + Send + use<> {
        let mounted = self.mounted();
        move || copy_of(&mounted)
    }

    /// Puts a copy in the place of what is on it; gives what was there.
    pub fn roll_back(&self, to: &Path) {
        self.unmount();
        std::fs::rename(to, self.mounted()).unwrap();
    }

    /// Undoes [`roll_back`](Self::roll_back).
    pub fn roll_forward(&self) {
        std::fs::remove_dir_all(self.mounted()).unwrap();
        self.mount();
    }

    fn mounted(&self) -> PathBuf {
        self.disk.path().join("mounted")
    }

    fn away(&self) -> PathBuf {
        self.disk.path().join("away")
    }
}

fn copy_of(disk: &Path) -> TempDir {
    let copy = TempDir::new().unwrap();
    for entry in std::fs::read_dir(disk).unwrap() {
        let from = entry.unwrap().path();
        match std::fs::copy(&from, copy.path().join(from.file_name().unwrap())) {
            // What is not finished, or not needed any more, goes away meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            copied => drop(copied.unwrap()),
        }
    }
    copy
}

/// Lets something end after none of its writes, after one, after two and so on, so many at once,
/// until one needs no more than it has room for; how many were tried. `ends_after` says whether
/// there were more writes than its number.
pub async fn every_write(at_once: usize, ends_after: impl AsyncFn(usize) -> bool) -> usize {
    let mut tried = 0;
    loop {
        let several = (tried..tried + at_once).map(|writes| ends_after(writes));
        tried += at_once;
        let all_ended = join_all(several).await.into_iter().all(|ended| ended);
        if !all_ended {
            return tried;
        }
    }
}

/// Starts an LSP with a backup. It sells as all here do.
pub async fn start_lsp(
    chain: &RegtestNode,
    mnemonic: &Mnemonic,
    directory: &Path,
    remote: &Remote,
    begin: Begin,
) -> Result<Arc<Lsp>, WalletError> {
    LspBuilder::new(Network::Regtest, mnemonic.clone())
        .storage_dir(directory.into())
        .chain_source(chain_config(chain))
        .listen("127.0.0.1:0".parse().unwrap())
        .sales(sale_policy())
        .poll_interval(POLL_INTERVAL)
        .backup(remote.store(), begin)
        .start()
        .await
}

impl Default for Remote {
    fn default() -> Remote {
        Remote::new()
    }
}

impl TestNetwork {
    /// Gives a member's wallet a backup, over a restart.
    pub async fn back_up(&mut self, member: usize) {
        self.members[member].remote = Some(Remote::new());
        self.restart(member).await;
    }

    /// Starts the LSP again with a backup on this disk; the wallets find it.
    pub async fn restart_lsp_with(&mut self, remote: &Remote) {
        self.lose_lsp().await;
        let words = Mnemonic::parse(&self.lsp_mnemonic).unwrap();
        let directory = self.lsp_directory.path();
        let open = || start_lsp(&self.chain, &words, directory, remote, Begin::Continue);
        let lsp = crate::reopening::reopened(open).await;
        self.is_led_by(lsp);
    }

    /// The disk of a member's backup.
    pub fn remote(&self, member: usize) -> &Remote {
        let remote = self.members[member].remote.as_ref();
        remote.expect("the member has a backup")
    }

    /// Starts a member's wallet from its backup in an empty directory, whatever the old one does.
    pub async fn restored(&self, member: usize) -> Result<(Arc<Wallet>, TempDir), WalletError> {
        let directory = TempDir::new().unwrap();
        let restored = self.members[member]
            .builder(directory.path(), self.poll_interval, Begin::Restore)
            .start()
            .await?;
        Ok((restored, directory))
    }

    /// The device of a member is gone with everything on it; a new one takes over.
    pub async fn replace_device(&mut self, member: usize) {
        self.wallet(member).stop().await;
        let lost = std::mem::replace(&mut self.members[member].directory, TempDir::new().unwrap());
        lost.close().unwrap();
        let (wallet, directory) = self.restored(member).await.unwrap();
        self.members[member].wallet = wallet;
        self.members[member].directory = directory;
    }

    /// Waits until a wallet stands still because its backup is away.
    pub async fn stands_still(&self, member: usize) {
        self.wait("the wallet to stand still", async || {
            let backup = self.wallet(member).status().backup;
            let state = backup.expect("it has a backup").state;
            matches!(state, BackupState::Unreachable { .. })
        })
        .await;
    }
}
