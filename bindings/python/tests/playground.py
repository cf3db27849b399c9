"""Everything around a wallet, in processes of its own: bitcoind, an LSP, a watchtower, an ordinary node.

`SUPERSCALAR_BIN_DIR` says where the program that starts them is.
"""

import asyncio
import json
import os
from pathlib import Path

from superscalar import BitcoindAuth, ChainSource, Network, Wallet, WalletBuilder


class Playground:
    """Talks to the program: a line of JSON for each request, one for each answer."""

    def __init__(self, process, ready):
        self._process = process
        self._one_at_a_time = asyncio.Lock()
        self.lsp = ready["lsp"]
        self.tower = ready["tower"]
        bitcoind = ready["bitcoind"]
        auth = BitcoindAuth.USER_PASSWORD(bitcoind["user"], bitcoind["password"])
        self.chain = ChainSource.BITCOIND(bitcoind["address"], auth)

    @classmethod
    async def start(cls):
        program = Path(os.environ["SUPERSCALAR_BIN_DIR"]) / "playground"
        process = await asyncio.create_subprocess_exec(
            program, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        ready = json.loads(await process.stdout.readline())
        assert ready["event"] == "ready"
        return cls(process, ready)

    async def stop(self):
        """Ends it, and with it everything it started."""
        self._process.stdin.close()
        await self._process.wait()

    async def call(self, name, **arguments):
        async with self._one_at_a_time:
            request = json.dumps({"call": name, **arguments})
            self._process.stdin.write(request.encode() + b"\n")
            await self._process.stdin.drain()
            answer = json.loads(await self._process.stdout.readline())
        assert "done" in answer, f"{name}: {answer}"
        return answer["done"]

    async def wallet(self, directory, mnemonic, towers=()) -> Wallet:
        """A wallet of this seed in this directory, not yet started."""
        builder = WalletBuilder(Network.REGTEST, mnemonic)
        builder.storage_dir(str(directory)).chain_source(self.chain).lsp(self.lsp)
        builder.poll_interval_ms(200)
        for tower in towers:
            builder.tower(tower)
        return await builder.build()
