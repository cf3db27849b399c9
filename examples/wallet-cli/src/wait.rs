//! Commands that wait, with a progress bar where stderr is a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use superscalar_sdk::{Event, ExitInfo, FactoryInfo, Payment, PaymentStatus};

use crate::client::Client;
use crate::protocol::{Failure, Request};

const REDRAW: Duration = Duration::from_millis(100);
/// Blocks make no events, so the state of an exit is asked for.
const EXIT_POLL: Duration = Duration::from_millis(500);

/// Waits until a factory joined after event `after` is active.
pub(crate) async fn for_factory(
    client: &mut Client,
    mut after: u64,
) -> Result<FactoryInfo, Failure> {
    let bar = spinner("waiting for the LSP to build a factory");
    let active = loop {
        match client.next_event(&mut after).await? {
            Some(Event::FactoryJoined { factory, slot }) => {
                bar.set_message(format!("slot {slot} of factory {factory}: signing"));
            }
            Some(Event::FactoryComplete { factory }) => {
                bar.set_message(format!(
                    "factory {factory} is signed: waiting for its block"
                ));
            }
            Some(Event::FactoryActive { factory, .. }) => break factory,
            Some(Event::FactoryDormant { factory, reason }) => {
                bar.set_message(format!(
                    "factory {factory} was given up ({reason}): waiting for the next"
                ));
            }
            Some(Event::FactoryUnfunded { factory }) => {
                bar.set_message(format!("factory {factory} has waited a day for its block"));
            }
            Some(Event::FactoryEnded {
                factory, reason, ..
            }) => {
                let message = format!("factory {factory} came to nothing: {reason}");
                return Err(Failure::new("factory_ended", message).hint("`join` asks again"));
            }
            _ => {}
        }
    };
    bar.finish_and_clear();
    let all: Vec<FactoryInfo> = client.ask(&Request::Factories {}).await?;
    let found = all.into_iter().find(|it| it.factory == active);
    found.ok_or_else(|| Failure::new("unknown_factory", format!("{active} is gone")))
}

/// Waits until a payment has arrived or failed; one that failed is a failure.
pub(crate) async fn for_payment(
    client: &mut Client,
    payment_hash: &str,
) -> Result<Payment, Failure> {
    let bar = spinner("paying");
    let request = Request::Payment {
        payment_hash: payment_hash.to_owned(),
    };
    let mut after = client.newest_event().await?;
    loop {
        let payment: Payment = client.ask(&request).await?;
        match payment.status {
            PaymentStatus::Succeeded => return Ok(payment),
            PaymentStatus::Failed => {
                let message = format!("payment {payment_hash} failed, nothing was paid");
                let failure = Failure::new("payment_failed", message);
                return Err(failure.hint("`events` says why"));
            }
            _ => {}
        }
        client.next_event(&mut after).await?;
        bar.tick();
    }
}

/// Waits until a channel bought after event `after` is there and paid for.
pub(crate) async fn for_inbound(
    client: &mut Client,
    mut after: u64,
    bought_in: &str,
) -> Result<(), Failure> {
    let bar = spinner("waiting for the channel");
    loop {
        match client.next_event(&mut after).await? {
            Some(Event::InboundDelivered { factory, .. }) if factory == bought_in => {
                bar.set_message("the channel is there: paying for it");
            }
            Some(Event::InboundPaid { factory, .. }) if factory == bought_in => {
                bar.finish_and_clear();
                return Ok(());
            }
            _ => {}
        }
    }
}

/// Waits until an exit has brought everything into the wallet.
pub(crate) async fn for_exit(client: &mut Client, factory: &str) -> Result<ExitInfo, Failure> {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{spinner} [{bar:24}] {pos}/{len} {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(REDRAW);
    loop {
        let exit = exit_of(client, factory).await?;
        match exit.stage.as_str() {
            "done" | "paid_out" | "superseded" => {
                bar.finish_and_clear();
                return Ok(exit);
            }
            _ => {}
        }
        bar.set_length(u64::from(exit.of));
        bar.set_position(u64::from(exit.step.saturating_sub(1)));
        let left = exit
            .blocks_left_best
            .map(|blocks| format!(", {blocks} blocks left"));
        bar.set_message(format!("{}{}", exit.waiting, left.unwrap_or_default()));
        tokio::time::sleep(EXIT_POLL).await;
    }
}

/// The exit of one factory.
pub(crate) async fn exit_of(client: &mut Client, factory: &str) -> Result<ExitInfo, Failure> {
    let all: Vec<ExitInfo> = client.ask(&Request::ExitStatus {}).await?;
    all.into_iter()
        .find(|it| it.factory == factory)
        .ok_or_else(|| {
            let message = format!("no exit of factory {factory} was begun");
            Failure::new("no_exit", message).hint("`exit start` begins one")
        })
}

fn spinner(message: &'static str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(message);
    bar.enable_steady_tick(REDRAW);
    bar
}
