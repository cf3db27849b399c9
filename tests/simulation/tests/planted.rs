//! The net has teeth: bugs planted on purpose are caught, each by the promise it breaks.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests"
)]

use superscalar_simulation::{Bug, Failure, Invariant, Run, run};

/// A bug must show in one of so many seeds.
const SEEDS: u64 = 200;
const STEPS: u64 = 3_000;

/// The first seed in which the bug shows.
fn first_failure(bug: Bug) -> Box<Failure> {
    let failure = (0..SEEDS).find_map(|seed| run(planted(bug, seed)).err());
    failure.unwrap_or_else(|| panic!("nobody saw {bug:?} in {SEEDS} seeds"))
}

fn planted(bug: Bug, seed: u64) -> Run {
    Run {
        steps: STEPS,
        bug: Some(bug),
        ..Run::of(seed)
    }
}

/// The first seed in which the bug shows must show it as one of these.
fn caught(bug: Bug, as_one_of: &[Invariant]) {
    let failure = first_failure(bug);
    println!("{bug:?}: {failure}");
    assert!(
        as_one_of.contains(&failure.violation.invariant),
        "{bug:?}: {failure}"
    );
}

/// Whoever reads of a failure can see it again: the same promise breaks in the same step, after the
/// same events, and the last line is the command for it.
#[test]
fn a_failing_seed_fails_in_the_same_way_again() {
    let bug = Bug::BalanceOffByOne;
    let first = first_failure(bug);
    let again = run(planted(bug, first.seed)).expect_err("the bug is still there");
    assert_eq!((again.seed, again.step), (first.seed, first.step));
    assert_eq!(again.violation, first.violation);
    assert_eq!(again.trail, first.trail);
    let Failure {
        seed,
        step,
        violation,
        ..
    } = &*first;
    let told = first.to_string();
    let what = format!("seed {seed}, step {step}: {violation}");
    assert!(told.contains(&what), "{told}");
    let how = format!("cargo run -p superscalar-simulation -- --seed {seed} --steps {STEPS}");
    assert!(told.ends_with(&how), "{told}");
}

macro_rules! planted {
    ($( $test:ident: $bug:ident => $($invariant:ident)|+ ),* $(,)?) => {
        $(
            #[test]
            fn $test() {
                caught(Bug::$bug, &[$(Invariant::$invariant),+]);
            }
        )*
    };
}

planted! {
    a_root_partial_before_the_path_is_written: RootPartialBeforePath => DurableFirst,
    a_funding_before_all_have_acknowledged: FundingBeforeAcks => FundedLast,
    a_lost_record: LostRecord => Recoverability | CrashAnywhere,
    the_same_randomness_after_a_restart: SameRandomness => Nonces,
    a_delay_short_by_one: DelayShortByOne => Recoverability | NoEquivocation | CrashAnywhere,
    an_amount_off_by_one: AmountOffByOne => Recoverability | NoEquivocation | CrashAnywhere,
    a_balance_off_by_one: BalanceOffByOne => Conservation,
    a_preimage_before_its_htlc: EarlyPreimage => NoEarlySecret,
    an_unburied_funding_that_counts: UnburiedCounts => NoPrematureMoney,
    signatures_nobody_checked: UncheckedPath => Recoverability,
    coins_of_a_published_funding_freed: CoinsReleased => FundedLast,
    coins_locked_for_nothing: CoinsLocked => CrashAnywhere,
    a_refusal_that_changes_state: RefusalChangesState => BadInput,
    an_exit_one_block_too_early: ExitTooEarly => Exit,
    an_exit_that_is_not_written_down: ExitNotWritten => DurableFirst,
    a_wallet_that_stays_until_the_lsp_takes_all: StaysToTheEnd => Recoverability | Exit,
    the_same_randomness_for_every_sale: SameSaleRandomness => Nonces,
    a_sale_that_is_not_written_down: SaleNotWritten => DurableFirst,
    a_state_that_is_signed_before_that_is_written_down: StateNotWritten => DurableFirst,
    an_epoch_whose_signature_is_not_written_down: EpochNotWritten => DurableFirst,
    preimages_that_are_not_written_down: PreimagesNotWritten => DurableFirst | NoPrematureMoney,
    a_sale_that_a_disk_loses: SaleLost => Recoverability | CrashAnywhere | DurableFirst | NoPrematureMoney,
    an_epoch_that_a_disk_loses: EpochLost => Recoverability | CrashAnywhere | DurableFirst,
    a_payment_into_a_channel_at_rest: FrozenIgnored => Conservation,
    more_in_limbo_than_completion_would_give: LimboIgnored => Limbo,
    a_bought_channel_used_before_it_is_paid_for: UnpaidUsed => NoPrematureMoney,
    a_sale_that_stays_off_chain: SalesStayOffChain => Race | Exit,
    a_kickoff_that_is_not_answered: KickoffsUnanswered => Race,
    a_tower_that_only_acknowledges: TowerOnlyAcknowledges => Race,
    a_tower_that_takes_no_revoked_stock: TowerTakesNoStock => Race,
    a_place_given_up_for_more_than_was_agreed: ForgoesAnything => Conservation,
}
