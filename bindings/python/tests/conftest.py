import pytest_asyncio

from playground import Playground


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def playground():
    started = await Playground.start()
    yield started
    await started.stop()
