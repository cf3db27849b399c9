//! Exits that begin by themselves, and those that must not.

use superscalar_factory::terms::TimeoutPolicy;

use super::ceremony::US;
use super::device::{Device, Member};
use crate::hosting::SlotPhase;

fn leave_by(device: &Device) -> u32 {
    let header = &device.engine.members[&US.attempt].invite().header;
    header.leave_by().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wallet_leaves_in_time_what_its_lsp_would_take() {
    let member = Member::new(TimeoutPolicy::LspReclaims, SlotPhase::Active).await;
    let mut device = member.run().await;
    let height = leave_by(&device);
    device.blocks_to(height - 1).await;
    assert!(!device.has_job() && member.net.handed().is_empty());
    device.block().await;
    assert!(device.has_job() && !member.net.handed().is_empty());
    device.rooms.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_channel_is_left_at_the_next_start() {
    let member = Member::new(TimeoutPolicy::MembersReclaim, SlotPhase::Closed).await;
    let device = member.run().await;
    assert!(device.has_job() && !member.net.handed().is_empty());
    device.rooms.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exit_that_could_not_begin_begins_with_the_next_block() {
    let member = Member::new(TimeoutPolicy::MembersReclaim, SlotPhase::Closed).await;
    let member = member.restored().await;
    let mut device = member.run().await;
    assert!(!device.has_job());
    device.rooms.host.confirm_state().unwrap();
    device.block().await;
    assert!(device.has_job() && !member.net.handed().is_empty());
    device.rooms.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_by_itself_in_a_restored_state() {
    let member = Member::new(TimeoutPolicy::LspReclaims, SlotPhase::Closed).await;
    let member = member.restored().await;
    let mut device = member.run().await;
    let height = leave_by(&device);
    device.blocks_to(height).await;
    assert!(device.rooms.host.is_unconfirmed());
    assert!(!device.has_job() && member.net.handed().is_empty());
    device.rooms.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_does_not_work_again_confirms_no_restored_state() {
    for phase in [SlotPhase::Held, SlotPhase::Active, SlotPhase::Frozen] {
        let member = Member::new(TimeoutPolicy::MembersReclaim, phase).await;
        let member = member.restored().await;
        let mut device = member.run().await;
        device.block().await;
        assert!(device.rooms.host.is_unconfirmed(), "{phase:?}");
        device.rooms.close().await;
    }
}
