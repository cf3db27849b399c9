package org.superscalar.wallet

import java.nio.file.Path
import kotlin.concurrent.thread
import kotlin.time.Duration.Companion.milliseconds
import kotlin.time.Duration.Companion.seconds
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.TimeoutCancellationException
import kotlinx.coroutines.async
import kotlinx.coroutines.awaitAll
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.filter
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withTimeout
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Assertions.fail
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

private val LIMIT = 120.seconds

/** Two wallets without a coin and a real LSP: from the first start to leaving alone. */
class WalletTest {
    @Test
    fun `a first payment into each of two wallets`(@TempDir directory: Path) = runBlocking(Dispatchers.IO) {
        Playground().use { playground ->
            val payments = listOf("a", "b").map { name ->
                async {
                    val mnemonic = generateMnemonic(WordCount.TWELVE)
                    val path = directory.resolve(name).toString()
                    firstPayment(mnemonic, path, playground.chain, playground.lsp, playground::pay)
                }
            }
            playground.createFactory(members = 2)
            for (balance in payments.awaitAll()) {
                assertEquals(20_000_000uL, balance.spendableMsat + balance.reservedMsat)
                assertTrue(balance.inboundMsat > 0u)
                assertEquals(0uL, balance.onchainSat + balance.onchainPendingSat)
            }
        }
    }

    @Test
    fun `two wallets without a coin`(@TempDir directory: Path) = runBlocking {
        Playground().use { playground -> fromStartToExit(playground, directory) }
    }

    private suspend fun fromStartToExit(playground: Playground, directory: Path) = coroutineScope {
        val seeds = List(2) { generateMnemonic(WordCount.TWELVE) }
        val alice = playground.wallet(directory.resolve("a"), seeds[0])
        val bob = playground.wallet(directory.resolve("b"), seeds[1])
        for (wallet in listOf(alice, bob)) {
            assertFalse(wallet.status().running)
            listOf(launch { wallet.start() }, launch { wallet.start() }).forEach { it.join() }
            assertTrue(wallet.status().running)
            assertEquals(0uL, wallet.heldMsat())
        }
        val early = refusal { alice.lightning().receive(1_000u) }
        assertEquals("no_active_channel" to Action.JOIN_FACTORY, early.code to early.action)
        assertTrue(early.retryable && early.message.isNotEmpty())

        assertEquals("nothing_to_export", refusal { alice.exit().exportPackage("passphrase") }.code)

        // A factory of both, on other conditions than the standard ones.
        val standard = standardJoinRequest(500_000u)
        assertEquals(listOf(Policy.MEMBERS_RECLAIM) to 1_008u, standard.policies to standard.routeLimitBlocks)
        val request = standard.copy(policies = listOf(Policy.LSP_RECLAIMS))
        for (wallet in listOf(alice, bob)) wallet.factories().joinWith(request)
        val factory = playground.createFactory(members = 2, policy = "lsp_reclaims")
        for (wallet in listOf(alice, bob)) {
            val joined = wallet.until<Event.FactoryJoined> { it.factory == factory }
            val active = wallet.until<Event.FactoryActive> { it.factory == factory }
            assertTrue(joined.cursor < active.cursor)
            val info = wallet.factories().list().single()
            assertTrue(info.active && info.phase == "active" && info.factory == factory)
            assertEquals(500_000uL, info.seats.single().capacitySat)
        }

        // In from an ordinary node, over to the other, out to the ordinary node.
        playground.pay(alice.lightning().receive(150_000_000u, "salary"))
        alice.until<Event.PaymentReceived> { it.amountMsat == 150_000_000uL }
        var feesMsat = alice.pays(bob, 40_000_000u)
        val hash = alice.lightning().send(playground.invoice(10_000_000))
        val sent = alice.until<Event.PaymentSent> { it.paymentHash == hash }
        feesMsat += (sent.event as Event.PaymentSent).feeMsat
        assertTrue(feesMsat > 0u)
        untilTrue { alice.heldMsat() == 100_000_000uL - feesMsat && bob.heldMsat() == 40_000_000uL }
        val done = checkNotNull(alice.lightning().payment(hash))
        assertEquals(PaymentStatus.SUCCEEDED to Direction.OUTBOUND, done.status to done.direction)
        assertEquals(10_000_000uL, done.amountMsat)
        assertEquals(3, alice.lightning().payments().size)
        assertNull(alice.lightning().payment("00".repeat(32)))

        // Events: acknowledged ones are gone, and that is told.
        alice.acknowledge(sent.cursor)
        assertEquals(sent.cursor, alice.acknowledged())
        val page = alice.events(0u)
        assertTrue(page.gap && page.events.isEmpty())
        try {
            alice.eventFlow(after = 0u).first()
            fail<Unit>("no gap was told")
        } catch (gap: EventGapException) {
            assertEquals(0uL, gap.cursor)
        }
        val unknown = refusal { alice.acknowledge(sent.cursor + 1_000u) }
        assertEquals("invalid_argument", unknown.code)
        assertEquals("cursor", unknown.fields["field"])
        assertEquals(sent.cursor.toString(), unknown.fields["newest"])

        // Waiting ends with whoever waits, and with the wallet.
        try {
            withTimeout(100.milliseconds) { alice.waitForEvent(sent.cursor) }
            fail<Unit>("nothing happened to wait for")
        } catch (_: TimeoutCancellationException) {
        }
        val waiting = async(Dispatchers.IO, CoroutineStart.UNDISPATCHED) {
            refusal { alice.waitForEvent(sent.cursor) }
        }
        val handle = alice.lightning()
        List(3) { thread { runBlocking { alice.stop() } } }.forEach { it.join() }
        assertFalse(alice.status().running)
        assertEquals("stopped", waiting.await().code)

        // A stopped wallet holds nothing, whoever still has a handle.
        val stopped = refusal { handle.receive(1_000u) }
        assertEquals("stopped" to Action.START, stopped.code to stopped.action)
        val wrong = refusal { playground.wallet(directory.resolve("a"), seeds[1]).start() }
        assertEquals("wrong_seed" to Action.USE_MATCHING_SEED, wrong.code to wrong.action)
        playground.wallet(directory.resolve("a"), seeds[0]).running { again ->
            val locked = refusal { alice.start() }
            assertEquals("storage_locked" to Action.CLOSE_OTHER_INSTANCE, locked.code to locked.action)
            assertEquals(directory.resolve("a").toString(), locked.fields["directory"])
            assertEquals(100_000_000uL - feesMsat, again.heldMsat())
            assertEquals(listOf(factory), again.factories().list().map { it.factory })
            assertEquals(3, again.lightning().payments().size)
            assertEquals(sent.cursor, again.acknowledged())
        }

        // The first object starts again, and pays.
        alice.start()
        untilTrue { alice.status().lspConnected && alice.balance().spendableMsat > 0u }
        alice.pays(bob, 5_000_000u)

        // More to receive on, without a neighbour or a block.
        val dear = refusal { alice.factories().quoteInbound(factory, 50_000u, 1u) }
        assertEquals("quote_refused" to "price_msat", dear.code to dear.fields["quoted"])
        val quote = alice.factories().quoteInbound(factory, 50_000u, 1_000_000u)
        assertEquals(factory to 50_000uL, quote.factory to quote.capacitySat)
        alice.factories().buyInbound(quote)
        alice.until<Event.InboundDelivered> { it.factory == factory && it.capacitySat == 50_000uL }
        alice.until<Event.InboundPaid> { it.factory == factory && it.priceMsat == quote.priceMsat }
        val sold = alice.factories().list().single().seats.single().sold
        assertEquals(listOf(50_000uL), sold.map { it.capacitySat })

        // A channel on chain, bought with the payment it is opened for.
        assertTrue(bob.lightning().channels().isEmpty())
        val jit = bob.lightning().quoteJit(20_000_000u)
        assertTrue(jit.feeMsat in 1uL..<20_000_000uL)
        val above = refusal { bob.lightning().receiveJit(20_000_000u, jit.feeMsat - 1u) }
        assertEquals("jit_fee_above_cap" to jit.feeMsat.toString(), above.code to above.fields["fee_msat"])
        val bought = bob.lightning().receiveJit(20_000_000u, jit.feeMsat)
        assertEquals(jit.feeMsat, bought.quote.feeMsat)
        assertEquals("no_channel", refusal { bob.lightning().closeChannel("00".repeat(32), Closing.ALONE) }.code)

        // The ways out as a file.
        val channel = checkNotNull(bob.factories().list().single().seats.single().channel)
        val sealed = bob.exit().exportPackage("passphrase")
        assertEquals(listOf(channel), playground.openPackage(sealed, "passphrase"))
        assertEquals("invalid_argument", refusal { bob.exit().exportPackage("") }.code)

        // Leaving alone, with nobody there.
        playground.killLsp()
        val plan = bob.exit().plan(factory)
        assertTrue(plan.worthIt && plan.coinsNeededSat == 0uL && plan.transactions > 0u)
        assertEquals(45_000uL, plan.balanceSat)
        assertTrue(plan.arrivingSat in 1uL..<plan.balanceSat)
        assertTrue(bob.exit().status().isEmpty())
        bob.exit().start(factory, ExitMode.LEAVE)
        val leaving = bob.exit().status().single()
        assertEquals(factory to "tree", leaving.factory to leaving.stage)
        assertEquals(1u to plan.transactions, leaving.step to leaving.of)
        bob.until<Event.ExitStarted> { it.factory == factory }
        val missing = refusal { bob.exit().plan("00") }
        assertEquals("unknown_factory" to "00", missing.code to missing.fields["factory"])
        untilTrue {
            playground.mine()
            bob.sync()
            bob.exit().status().single().stage == "done"
        }
        // What arrived is what the blocks say, and what the plan said.
        val balance = bob.balance()
        assertEquals(playground.sweptSat(channel, 45_000uL), balance.onchainSat)
        assertEquals(plan.arrivingSat to 0uL, balance.onchainSat to balance.onchainPendingSat)
        assertEquals(0uL, bob.heldMsat())
        for (wallet in listOf(alice, bob)) wallet.stop()
    }

    @Test
    fun `wrong input is named`() = runBlocking {
        val words = List(12) { "abandon" }.joinToString(" ")
        val mnemonic = refusal { WalletBuilder(Network.REGTEST, words) }
        assertEquals("invalid_mnemonic", mnemonic.code)
        assertEquals(mapOf("field" to "mnemonic"), mnemonic.fields)
        assertEquals(false to Action.CORRECT_INPUT, mnemonic.retryable to mnemonic.action)
        assertFalse("abandon" in mnemonic.toString())
        val builder = WalletBuilder(Network.REGTEST, generateMnemonic(WordCount.TWENTY_FOUR))
        assertEquals(mapOf("field" to "lsp"), refusal { builder.lsp("nonsense") }.fields)
        val incomplete = refusal { builder.build() }
        assertEquals("incomplete_settings", incomplete.code)
        assertEquals(mapOf("field" to "storage_dir"), incomplete.fields)
    }
}

/** Pays between wallets and waits until both know; gives the fee. */
private suspend fun Wallet.pays(payee: Wallet, amountMsat: ULong): ULong {
    val invoice = payee.lightning().receive(amountMsat, "coffee")
    val quote = lightning().prepareSend(invoice)
    assertEquals(amountMsat to "coffee", quote.amountMsat to quote.description)
    assertEquals(payee.nodeId() to true, quote.payee to quote.affordable)
    val hash = lightning().send(invoice)
    val sent = until<Event.PaymentSent> { it.paymentHash == hash }
    payee.until<Event.PaymentReceived> { it.paymentHash == hash && it.amountMsat == amountMsat }
    val again = refusal { lightning().send(invoice) }
    assertEquals(Triple("already_paid", Action.NOTHING, false), Triple(again.code, again.action, again.retryable))
    return (sent.event as Event.PaymentSent).feeMsat
}

private suspend fun Wallet.heldMsat() = balance().let { it.spendableMsat + it.reservedMsat }

/** The first such event, from the beginning of those kept. */
private suspend inline fun <reified T : Event> Wallet.until(crossinline wanted: (T) -> Boolean): StoredEvent =
    withTimeout(LIMIT) { eventFlow().filter { (it.event as? T)?.let(wanted) == true }.first() }

/** Asks again until it is so. */
private suspend fun untilTrue(condition: suspend () -> Boolean) = withTimeout(LIMIT) {
    while (!condition()) delay(50.milliseconds)
}

private suspend fun refusal(call: suspend () -> Any?): ErrorInfo {
    try {
        call()
    } catch (refused: WalletException) {
        return refused.info
    }
    return fail("it was not refused")
}
