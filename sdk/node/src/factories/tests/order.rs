//! What waits for a record that cannot be written.

use superscalar_factory::effect::Effect;
use superscalar_factory::journal::Dormant;
use superscalar_factory::message::RefusalCode;
use superscalar_factory::terms::TimeoutPolicy;

use super::ceremony::US;
use super::device::Member;
use crate::hosting::SlotPhase;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_follows_a_record_happens_before_it_is_on_disk() {
    let member = Member::new(TimeoutPolicy::MembersReclaim, SlotPhase::Active).await;
    let mut device = member.run().await;
    let tx = member.net.above(0)[0].0.txdata[0].clone();
    let mut later = tx.clone();
    later.input[0].previous_output.vout += 1;
    let code = RefusalCode::Other;
    let before = member.net.handed().len();
    let engine = &mut device.engine;
    let due = [
        Effect::Persist(Dormant { code }.into()),
        Effect::Broadcast(later),
    ];
    engine.due.extend(due.map(|effect| (US.attempt, effect)));
    member.remote.set_away(true);
    engine.settle().await;
    member.remote.set_away(false);
    assert_eq!(member.net.handed().len(), before, "it waits");
    let stream = super::super::bridge::stream(&US.attempt, false);
    let records = || device.rooms.store.records(&stream).unwrap().len();
    let written = records();
    device.engine.settle().await;
    assert_eq!(records(), written + 1);
    assert_eq!(member.net.handed().len(), before + 1);
    device.rooms.close().await;
}
