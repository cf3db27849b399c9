package org.superscalar.wallet

import kotlinx.coroutines.flow.first

suspend fun firstPayment(
    mnemonic: String,
    directory: String,
    chain: ChainSource,
    lsp: String,
    show: suspend (invoice: String) -> Unit,
): Balance {
    val wallet = WalletBuilder(Network.REGTEST, mnemonic)
        .storageDir(directory).chainSource(chain).lsp(lsp).build()
    return wallet.running {
        wallet.factories().join(500_000u) // satoshi; no coin needed
        wallet.eventFlow().first { stored ->
            if (stored.event is Event.FactoryActive) {
                show(wallet.lightning().receive(20_000_000u, "coffee"))
            }
            wallet.acknowledge(stored.cursor)
            stored.event is Event.PaymentReceived
        }
        wallet.balance()
    }
}
