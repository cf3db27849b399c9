"""What Python expects and the generated module does not have."""

from __future__ import annotations

import contextlib
from typing import AsyncIterator, Optional

from .superscalar_ffi import StoredEvent, Wallet


class EventGap(Exception):
    """Events behind the cursor asked for were acknowledged and are gone: what they told must be
    read from the wallet itself (balance, payments, factories)."""

    def __init__(self, cursor: int) -> None:
        super().__init__(f"events behind cursor {cursor} are gone")
        self.cursor = cursor


@contextlib.asynccontextmanager
async def running(wallet: Wallet) -> AsyncIterator[Wallet]:
    """Starts the wallet, and stops it at the end of the block, however that comes."""
    await wallet.start()
    try:
        yield wallet
    finally:
        await wallet.stop()


async def events(wallet: Wallet, after: Optional[int] = None) -> AsyncIterator[StoredEvent]:
    """All events behind the cursor `after`, waiting for each; by default those that are not
    acknowledged. Acknowledge what is handled: it is told again at the next start otherwise.

    Raises `EventGap` when events behind `after` are gone, `WalletError` with code `stopped` when
    the wallet is stopped.
    """
    cursor = await wallet.acknowledged() if after is None else after
    while True:
        page = await wallet.events(cursor)
        if page.gap:
            raise EventGap(cursor)
        for stored in page.events:
            yield stored
            cursor = stored.cursor
        if not page.events:
            await wallet.wait_for_event(cursor)
