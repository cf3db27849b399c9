"""Two wallets without a coin and a real LSP: from the first start to leaving alone."""

import asyncio
import threading

import pytest
from first_payment import first_payment
from superscalar import (
    Action,
    Closing,
    Direction,
    Event,
    EventGap,
    ExitMode,
    Network,
    PaymentStatus,
    Policy,
    TowerState,
    WalletBuilder,
    WalletError,
    WordCount,
    events,
    generate_mnemonic,
    running,
    standard_join_request,
)

LIMIT_SECS = 120


async def until(wallet, kind, **values):
    """The first event of this kind and these values, from the beginning of those kept."""
    async with asyncio.timeout(LIMIT_SECS):
        async for stored in events(wallet):
            event = stored.event
            if isinstance(event, kind) and all(getattr(event, k) == v for k, v in values.items()):
                return stored


async def until_true(condition):
    """Asks again until it is so."""
    async with asyncio.timeout(LIMIT_SECS):
        while not await condition():
            await asyncio.sleep(0.05)


async def refusal(call):
    with pytest.raises(WalletError) as refused:
        await call
    return refused.value.info


async def held_msat(wallet):
    balance = await wallet.balance()
    return balance.spendable_msat + balance.reserved_msat


async def pay(payer, payee, amount_msat):
    """Pays between wallets and waits until both know; gives the fee."""
    invoice = await payee.lightning().receive(amount_msat, "coffee")
    quote = await payer.lightning().prepare_send(invoice)
    assert (quote.amount_msat, quote.description) == (amount_msat, "coffee")
    assert quote.payee == payee.node_id() and quote.affordable
    payment_hash = await payer.lightning().send(invoice)
    sent = await until(payer, Event.PAYMENT_SENT, payment_hash=payment_hash)
    await until(payee, Event.PAYMENT_RECEIVED, payment_hash=payment_hash, amount_msat=amount_msat)
    again = await refusal(payer.lightning().send(invoice))
    assert (again.code, again.action, again.retryable) == ("already_paid", Action.NOTHING, False)
    return sent.event.fee_msat


async def test_a_first_payment_into_each_of_two_wallets(playground, tmp_path):
    async def show(invoice):
        await playground.call("pay", invoice=invoice)

    async def one(name):
        mnemonic = generate_mnemonic(WordCount.TWELVE)
        directory = str(tmp_path / name)
        return await first_payment(mnemonic, directory, playground.chain, playground.lsp, show)

    built = playground.call("create_factory", members=2)
    balance, other, _ = await asyncio.gather(one("a"), one("b"), built)
    for it in balance, other:
        assert it.spendable_msat + it.reserved_msat == 20_000_000
        assert it.inbound_msat > 0 and it.onchain_sat == it.onchain_pending_sat == 0


async def test_a_watchtower_keeps_what_is_signed(playground, tmp_path):
    async def one(name):
        mnemonic = generate_mnemonic(WordCount.TWELVE)
        wallet = await playground.wallet(tmp_path / name, mnemonic, [playground.tower])
        await wallet.start()
        await wallet.factories().join(500_000)
        return wallet

    async def health(wallet):
        (tower,) = await wallet.towers()
        return tower

    alice, bob = [await one(name) for name in ("alice", "bob")]
    factory = (await playground.call("create_factory", members=2))["factory"]
    for wallet in (alice, bob):
        await until(wallet, Event.FACTORY_COMPLETE, factory=factory)

        async def kept():
            tower = await health(wallet)
            return tower.kept == 1 and tower.backlog == 0

        await until_true(kept)
        tower = await health(wallet)
        assert (tower.uri, tower.state) == (playground.tower, TowerState.CONNECTED)
        assert tower.client_id == await wallet.tower_client_id(playground.tower)
        assert tower.coins_sat == 0 and tower.refused is None
    # Nobody can tell that they have the same tower.
    assert (await health(alice)).client_id != (await health(bob)).client_id
    assert (await refusal(alice.tower_client_id("nowhere"))).code == "invalid_argument"
    for wallet in (alice, bob):
        await wallet.stop()


async def test_other_conditions_than_the_standard_ones(playground, tmp_path):
    wallets = []
    for name in "a", "b":
        seed = generate_mnemonic(WordCount.TWELVE)
        wallets.append(await playground.wallet(tmp_path / name, seed))
    for wallet in wallets:
        await wallet.start()
        request = standard_join_request(400_000)
        assert request.policies == [Policy.MEMBERS_RECLAIM]
        assert (request.capacity_sat, request.route_limit_blocks) == (400_000, 1_008)
        request.policies = [Policy.LSP_RECLAIMS]
        await wallet.factories().join_with(request)
    built = await playground.call("create_factory", members=2, policy="lsp_reclaims")
    for wallet in wallets:
        await until(wallet, Event.FACTORY_ACTIVE, factory=built["factory"])
        await wallet.stop()


async def test_two_wallets_without_a_coin(playground, tmp_path):
    seeds = [generate_mnemonic(WordCount.TWELVE) for _ in range(2)]
    alice, bob = [
        await playground.wallet(tmp_path / name, seed) for name, seed in zip(["a", "b"], seeds)
    ]
    for wallet in alice, bob:
        assert not (await wallet.status()).running
        await asyncio.gather(wallet.start(), wallet.start())
        assert (await wallet.status()).running
        assert await held_msat(wallet) == 0

    early = await refusal(alice.lightning().receive(1_000))
    assert (early.code, early.action) == ("no_active_channel", Action.JOIN_FACTORY)
    assert early.retryable and early.message
    nothing = await refusal(alice.exit().export_package("passphrase"))
    assert nothing.code == "nothing_to_export"

    # A factory of both.
    for wallet in alice, bob:
        await wallet.factories().join(500_000)
    factory = (await playground.call("create_factory", members=2))["factory"]
    for wallet in alice, bob:
        joined = await until(wallet, Event.FACTORY_JOINED, factory=factory)
        active = await until(wallet, Event.FACTORY_ACTIVE, factory=factory)
        assert joined.cursor < active.cursor
        [info] = await wallet.factories().list()
        assert info.active and info.phase == "active" and info.factory == factory
        assert info.seats[0].capacity_sat == 500_000

    # In from an ordinary node, over to the other, out to the ordinary node.
    invoice = await alice.lightning().receive(150_000_000, "salary")
    await playground.call("pay", invoice=invoice)
    await until(alice, Event.PAYMENT_RECEIVED, amount_msat=150_000_000)
    fees_msat = await pay(alice, bob, 40_000_000)
    outside = (await playground.call("invoice", amount_msat=10_000_000))["invoice"]
    payment_hash = await alice.lightning().send(outside)
    sent = await until(alice, Event.PAYMENT_SENT, payment_hash=payment_hash)
    fees_msat += sent.event.fee_msat
    assert fees_msat > 0

    async def adds_up():
        held = [await held_msat(wallet) for wallet in (alice, bob)]
        return held == [100_000_000 - fees_msat, 40_000_000]

    await until_true(adds_up)
    done = await alice.lightning().payment(payment_hash)
    assert done.status == PaymentStatus.SUCCEEDED and done.direction == Direction.OUTBOUND
    assert done.amount_msat == 10_000_000 and done.fee_msat == sent.event.fee_msat
    assert len(await alice.lightning().payments()) == 3
    assert await alice.lightning().payment("00" * 32) is None

    # Events: acknowledged ones are gone, and that is told.
    await alice.acknowledge(sent.cursor)
    assert await alice.acknowledged() == sent.cursor
    page = await alice.events(0)
    assert page.gap and not page.events
    with pytest.raises(EventGap):
        await anext(events(alice, after=0))
    unknown = await refusal(alice.acknowledge(sent.cursor + 1_000))
    assert unknown.code == "invalid_argument" and unknown.fields["field"] == "cursor"
    assert unknown.fields["newest"] == str(sent.cursor)

    # Waiting ends with whoever waits, and with the wallet.
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(alice.wait_for_event(sent.cursor), 0.1)
    waiting = asyncio.create_task(refusal(alice.wait_for_event(sent.cursor)))
    handle = alice.lightning()
    await asyncio.sleep(0)
    await stop_from_threads(alice)
    assert (await waiting).code == "stopped"

    # A stopped wallet holds nothing, whoever still has a handle.
    stopped = await refusal(handle.receive(1_000))
    assert (stopped.code, stopped.action) == ("stopped", Action.START)
    stranger = await playground.wallet(tmp_path / "a", seeds[1])
    wrong = await refusal(stranger.start())
    assert (wrong.code, wrong.action) == ("wrong_seed", Action.USE_MATCHING_SEED)
    again = await playground.wallet(tmp_path / "a", seeds[0])
    async with running(again):
        locked = await refusal(alice.start())
        assert (locked.code, locked.action) == ("storage_locked", Action.CLOSE_OTHER_INSTANCE)
        assert locked.fields["directory"] == str(tmp_path / "a")
        assert await held_msat(again) == 100_000_000 - fees_msat
        assert [it.factory for it in await again.factories().list()] == [factory]
        assert len(await again.lightning().payments()) == 3
        assert await again.acknowledged() == sent.cursor

    # The first object starts again, and pays.
    await alice.start()

    async def connected():
        status = await alice.status()
        balance = await alice.balance()
        return status.lsp_connected and balance.spendable_msat > 0

    await until_true(connected)
    fees_msat += await pay(alice, bob, 5_000_000)

    # More to receive on, without a neighbour or a block.
    dear = await refusal(alice.factories().quote_inbound(factory, 50_000, 1))
    assert (dear.code, dear.fields["quoted"]) == ("quote_refused", "price_msat")
    quote = await alice.factories().quote_inbound(factory, 50_000, 1_000_000)
    assert (quote.factory, quote.capacity_sat) == (factory, 50_000) and quote.price_msat > 0
    await alice.factories().buy_inbound(quote)
    await until(alice, Event.INBOUND_DELIVERED, factory=factory, capacity_sat=50_000)
    await until(alice, Event.INBOUND_PAID, factory=factory, price_msat=quote.price_msat)
    [info] = await alice.factories().list()
    assert [it.capacity_sat for it in info.seats[0].sold] == [50_000]

    # A channel on chain, bought with the payment it is opened for.
    assert await bob.lightning().channels() == []
    quoted = await bob.lightning().quote_jit(20_000_000)
    assert quoted.amount_msat == 20_000_000 and 0 < quoted.fee_msat < 20_000_000
    dear = await refusal(bob.lightning().receive_jit(20_000_000, quoted.fee_msat - 1))
    assert dear.code == "jit_fee_above_cap"
    assert dear.fields["fee_msat"] == str(quoted.fee_msat)
    bought = await bob.lightning().receive_jit(20_000_000, quoted.fee_msat)
    assert bought.quote.fee_msat == quoted.fee_msat and bought.invoice.startswith("lnbcrt")
    unknown = await refusal(bob.lightning().close_channel("00" * 32, Closing.ALONE))
    assert unknown.code == "no_channel"

    # The ways out as a file.
    [info] = await bob.factories().list()
    [seat] = info.seats
    package = await bob.exit().export_package("passphrase")
    opened = await playground.call("open_package", package=package.hex(), passphrase="passphrase")
    assert opened["channels"] == [seat.channel]
    empty = await refusal(bob.exit().export_package(""))
    assert (empty.code, empty.action) == ("invalid_argument", Action.CORRECT_INPUT)

    # Leaving alone, with nobody there.
    await playground.call("kill_lsp")
    plan = await bob.exit().plan(factory)
    assert plan.worth_it and plan.coins_needed_sat == 0 and plan.transactions > 0
    assert plan.balance_sat == 45_000 and 0 < plan.arriving_sat < plan.balance_sat
    assert await bob.exit().status() == []
    await bob.exit().start(factory, ExitMode.LEAVE)
    [leaving] = await bob.exit().status()
    assert leaving.factory == factory and leaving.stage == "tree"
    assert leaving.step == 1 and leaving.of == plan.transactions
    await until(bob, Event.EXIT_STARTED, factory=factory)
    missing = await refusal(bob.exit().plan("00"))
    assert missing.code == "unknown_factory" and missing.fields["factory"] == "00"

    async def out():
        await playground.call("mine", blocks=1)
        await bob.sync()
        [leaving] = await bob.exit().status()
        return leaving.stage == "done"

    await until_true(out)
    # What arrived is what the blocks say, and what the plan said.
    swept = await playground.call("swept", channel=seat.channel, amount_sat=45_000)
    assert swept["vsize"] <= 45_000 - swept["paid_sat"] <= 20 * swept["vsize"]
    balance = await bob.balance()
    assert balance.onchain_sat == swept["paid_sat"] == plan.arriving_sat
    assert balance.onchain_pending_sat == balance.spendable_msat + balance.reserved_msat == 0
    leaf = await until(bob, Event.EXIT_LEAF_CONFIRMED, factory=factory)
    [left] = await bob.exit().status()
    assert left.leaf_height == leaf.event.height < swept["height"]
    for wallet in alice, bob:
        await wallet.stop()


async def stop_from_threads(wallet):
    """Stops it from three threads at once, each with a loop of its own."""
    failed = []

    def stop():
        try:
            asyncio.run(wallet.stop())
        except BaseException as error:  # noqa: BLE001 - told by the assertion below
            failed.append(error)

    threads = [threading.Thread(target=stop) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert failed == []
    assert not (await wallet.status()).running


async def test_wrong_input_is_named():
    words = " ".join(["abandon"] * 12)
    with pytest.raises(WalletError) as refused:
        WalletBuilder(Network.REGTEST, words)
    info = refused.value.info
    assert info.code == "invalid_mnemonic" and info.fields == {"field": "mnemonic"}
    assert not info.retryable and info.action == Action.CORRECT_INPUT
    assert "abandon" not in str(refused.value)
    builder = WalletBuilder(Network.REGTEST, generate_mnemonic(WordCount.TWENTY_FOUR))
    with pytest.raises(WalletError) as refused:
        builder.lsp("nonsense")
    assert refused.value.info.fields == {"field": "lsp"}
    incomplete = await refusal(builder.build())
    assert incomplete.code == "incomplete_settings"
    assert incomplete.fields == {"field": "storage_dir"}
