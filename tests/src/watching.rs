//! Members with watchtowers, and an LSP with them.

use crate::network::TestNetwork;
use crate::processes::TowerProcess;

impl TestNetwork {
    /// Gives a member these towers, over a restart.
    pub async fn watch_over(&mut self, member: usize, towers: &[&TowerProcess]) {
        self.members[member].towers = towers.iter().map(|tower| tower.uri()).collect();
        self.restart(member).await;
    }

    /// Gives the LSP these towers, over a restart.
    pub async fn watch_over_lsp(&mut self, towers: &[&TowerProcess]) {
        self.lsp_towers = towers.iter().map(|tower| tower.uri()).collect();
        self.restart_lsp().await;
    }

    /// Waits until each tower has acknowledged everything the LSP wants looked after.
    pub async fn guarded_lsp(&self) {
        self.wait("the towers to keep everything", async || {
            let towers = self.lsp().towers();
            let mut all = towers.iter();
            all.all(|tower| tower.backlog == 0 && tower.kept > 0)
        })
        .await;
    }

    /// Waits until each tower has acknowledged everything a member wants looked after.
    pub async fn guarded(&self, member: usize) {
        self.wait("the towers to keep everything", async || {
            let towers = self.wallet(member).towers().unwrap();
            let mut all = towers.iter();
            all.all(|tower| tower.backlog == 0 && tower.kept > 0)
        })
        .await;
    }
}
