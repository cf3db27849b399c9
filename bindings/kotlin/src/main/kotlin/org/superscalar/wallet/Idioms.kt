/** What Kotlin expects and the generated sources do not have. */

package org.superscalar.wallet

import kotlinx.coroutines.NonCancellable
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.withContext

/** Everything about the error: code, message, values, whether to repeat, what the user can do. */
val WalletException.info: ErrorInfo
    get() = when (this) {
        is WalletException.Failed -> info
    }

/**
 * Events behind the cursor asked for were acknowledged and are gone: what they told must be read
 * from the wallet itself (balance, payments, factories).
 */
class EventGapException(val cursor: ULong) : Exception("events behind cursor $cursor are gone")

/** Starts the wallet, runs [block] and stops the wallet, however the block ends. */
suspend fun <T> Wallet.running(block: suspend (Wallet) -> T): T {
    start()
    try {
        return block(this)
    } finally {
        withContext(NonCancellable) { stop() }
    }
}

/**
 * All events behind the cursor [after], waiting for each; by default those that are not
 * acknowledged. Acknowledge what is handled: it is told again at the next start otherwise.
 *
 * Fails with [EventGapException] when events behind [after] are gone, with [WalletException] of
 * code `stopped` when the wallet is stopped.
 */
fun Wallet.eventFlow(after: ULong? = null): Flow<StoredEvent> = flow {
    var cursor = after ?: acknowledged()
    while (true) {
        val page = events(cursor)
        if (page.gap) throw EventGapException(cursor)
        for (stored in page.events) {
            emit(stored)
            cursor = stored.cursor
        }
        if (page.events.isEmpty()) waitForEvent(cursor)
    }
}
