//! The order of messages of a payment from one member to another, read from the LSP's own log: a
//! hop is irrevocable before the next one is offered, and the preimage travels back. A program of its
//! own, because a process has one log.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write;
use std::sync::{Arc, Mutex};

use superscalar_tests::network::{TestNetwork, regtest_factory};

/// The log of everybody in this process.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// What the LSP exchanged with both members: LDK logs a message with the other side's id, so a
    /// member's id stands in the LSP's log only.
    fn of_lsp(&self, members: &[(&str, String)]) -> Vec<String> {
        let bytes = self.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        let mut seen = Vec::new();
        for line in text.lines() {
            let Some((_, member)) = members.iter().enumerate().find_map(|(index, (name, id))| {
                let peer = format!("peer=\"{id}\"");
                line.contains(&peer).then_some((index, name))
            }) else {
                continue;
            };
            for (words, verb) in [("Received message ", "from"), ("Enqueueing message ", "to")] {
                if let Some((_, message)) = line.split_once(words) {
                    let kind = message.split(|letter: char| !letter.is_alphanumeric());
                    seen.push(format!(
                        "{} {verb} {member}",
                        kind.into_iter().next().unwrap()
                    ));
                }
            }
        }
        seen
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_hop_is_irrevocable_before_the_next_and_the_preimage_comes_back() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_env_filter("ldk=trace")
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    let network = TestNetwork::start(2).await;
    network.build(regtest_factory(2)).await;
    network.lsp_pays(0, 100_000_000).await;
    network.settle().await;
    log.0.lock().unwrap().clear();
    network.pay(0, 1, 20_000_000).await;
    network.settle().await;

    let members = [
        ("payer", network.wallet(0).node_id()),
        ("payee", network.wallet(1).node_id()),
    ];
    let seen = log.of_lsp(&members);
    let wanted = [
        "UpdateAddHTLC from payer",
        "CommitmentSigned from payer",
        "RevokeAndACK to payer",
        "CommitmentSigned to payer",
        "RevokeAndACK from payer",
        "UpdateAddHTLC to payee",
        "CommitmentSigned to payee",
        "RevokeAndACK from payee",
        "CommitmentSigned from payee",
        "RevokeAndACK to payee",
        "UpdateFulfillHTLC from payee",
        "UpdateFulfillHTLC to payer",
    ];
    let mut rest = seen.iter();
    for message in wanted {
        let found = rest.any(|seen| seen == message);
        assert!(found, "{message} is missing or too early in {seen:#?}");
    }
    for once in wanted.iter().filter(|it| it.starts_with("Update")) {
        assert_eq!(seen.iter().filter(|seen| seen == once).count(), 1, "{once}");
    }
    assert!(!seen.iter().any(|it| it.starts_with("UpdateFail")));
    network.stop().await;
}
