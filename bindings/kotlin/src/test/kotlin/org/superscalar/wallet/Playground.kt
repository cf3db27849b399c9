package org.superscalar.wallet

import java.nio.file.Path
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive

/**
 * Everything around a wallet, in processes of its own: bitcoind, an LSP, an ordinary node.
 *
 * Talks to the program that starts them, a line of JSON for each request, one for each answer;
 * `SUPERSCALAR_BIN_DIR` says where it is.
 */
class Playground : AutoCloseable {
    private val process = ProcessBuilder(Path.of(System.getenv("SUPERSCALAR_BIN_DIR"), "playground").toString())
        .redirectError(ProcessBuilder.Redirect.INHERIT)
        .start()
    private val requests = process.outputStream.bufferedWriter()
    private val answers = process.inputStream.bufferedReader()
    private val ready = read()

    /** The LSP, `node_id@host:port`. */
    val lsp = ready.text("lsp")

    /** The bitcoind. */
    val chain = ready.getValue("bitcoind").jsonObject.let {
        ChainSource.Bitcoind(it.text("address"), BitcoindAuth.UserPassword(it.text("user"), it.text("password")))
    }

    /** Builds a factory, up to its funding in a block; gives its name. */
    fun createFactory(members: Int, policy: String = "members_reclaim") =
        call("create_factory", "members" to JsonPrimitive(members), "policy" to JsonPrimitive(policy)).text("factory")

    /** The outside node pays an invoice; returns when it has arrived. */
    fun pay(invoice: String) {
        call("pay", "invoice" to JsonPrimitive(invoice))
    }

    /** An invoice of the outside node. */
    fun invoice(amountMsat: Long) = call("invoice", "amount_msat" to JsonPrimitive(amountMsat)).text("invoice")

    /** Ends the LSP at once. */
    fun killLsp() {
        call("kill_lsp")
    }

    /** Finds a block. */
    fun mine() {
        call("mine", "blocks" to JsonPrimitive(1))
    }

    /** The channels that an exit package leads to. */
    fun openPackage(sealed: ByteArray, passphrase: String): List<String> {
        val hex = JsonPrimitive(sealed.toHexString())
        val opened = call("open_package", "package" to hex, "passphrase" to JsonPrimitive(passphrase))
        return opened.getValue("channels").jsonArray.map { it.jsonPrimitive.content }
    }

    /** What was paid, from a block, by the sweep of this output of a channel's commitment. */
    fun sweptSat(channel: String, amountSat: ULong): ULong {
        val amount = JsonPrimitive(amountSat.toLong())
        return call("swept", "channel" to JsonPrimitive(channel), "amount_sat" to amount).text("paid_sat").toULong()
    }

    /** A wallet of this seed in this directory, not yet started. */
    suspend fun wallet(directory: Path, mnemonic: String): Wallet =
        WalletBuilder(Network.REGTEST, mnemonic)
            .storageDir(directory.toString())
            .chainSource(chain)
            .lsp(lsp)
            .pollIntervalMs(200u)
            .build()

    /** Ends it, and with it everything it started. */
    override fun close() {
        requests.close()
        process.waitFor()
    }

    @Synchronized
    private fun call(name: String, vararg arguments: Pair<String, JsonElement>): JsonObject {
        requests.write(JsonObject(mapOf("call" to JsonPrimitive(name)) + arguments).toString())
        requests.newLine()
        requests.flush()
        val answer = read()
        return checkNotNull(answer["done"]) { "$name: $answer" }.jsonObject
    }

    private fun read() = Json.parseToJsonElement(checkNotNull(answers.readLine()) { "the playground ended" }).jsonObject

    private fun JsonObject.text(key: String) = getValue(key).jsonPrimitive.content
}
