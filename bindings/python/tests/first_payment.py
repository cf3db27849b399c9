from superscalar import Event, Network, WalletBuilder, events, running


async def first_payment(mnemonic, directory, chain, lsp, show):
    builder = WalletBuilder(Network.REGTEST, mnemonic)
    builder.storage_dir(directory).chain_source(chain).lsp(lsp)
    wallet = await builder.build()
    async with running(wallet):
        await wallet.factories().join(500_000)  # satoshi; no coin needed
        async for stored in events(wallet):
            if isinstance(stored.event, Event.FACTORY_ACTIVE):
                await show(await wallet.lightning().receive(20_000_000, "coffee"))
            await wallet.acknowledge(stored.cursor)
            if isinstance(stored.event, Event.PAYMENT_RECEIVED):
                return await wallet.balance()
