//! Members with watchtowers.

use crate::network::TestNetwork;
use crate::processes::TowerProcess;

impl TestNetwork {
    /// Gives a member these towers, over a restart.
    pub async fn watch_over(&mut self, member: usize, towers: &[&TowerProcess]) {
        self.members[member].towers = towers.iter().map(|tower| tower.uri()).collect();
        self.restart(member).await;
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
