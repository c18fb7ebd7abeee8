"""Futures in asyncio."""

import asyncio

import pytest

import forage
from sdk.fleet import WAIT_S, Fleet
from sdk.functions import add, divide


def test_a_future_can_be_awaited(client: forage.Client) -> None:
    async def main() -> int:
        return await client.submit(add, 1, 2)

    assert asyncio.run(main()) == 3


def test_many_futures_can_be_gathered(client: forage.Client) -> None:
    async def main() -> list[int]:
        futures = [client.submit(add, number) for number in range(200)]
        return await asyncio.gather(*(asyncio.wrap_future(future) for future in futures))

    assert asyncio.run(main()) == list(range(200))


def test_awaiting_raises_what_the_call_raised(client: forage.Client) -> None:
    async def main() -> float:
        return await client.submit(divide, 1, 0)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(main())


def test_a_done_future_can_be_awaited_again_in_another_loop(client: forage.Client) -> None:
    future = client.submit(add, 1, 2)

    async def main() -> int:
        return await future

    assert asyncio.run(main()) == asyncio.run(main()) == 3


def test_the_loop_goes_on_while_a_future_is_awaited(holding: Fleet, held: forage.Client) -> None:
    async def main() -> int:
        future = held.submit(add, 1, 2)

        async def release() -> None:
            holding.release()

        async with asyncio.timeout(WAIT_S):
            result, _ = await asyncio.gather(asyncio.wrap_future(future), release())
        return result

    assert asyncio.run(main()) == 3


def test_cancelling_the_wait_cancels_the_call(holding: Fleet, held: forage.Client) -> None:
    async def main() -> forage.Future[int]:
        future = held.submit(add, 1, 2)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await future
        return future

    future = asyncio.run(main())
    assert future.cancelled()
    holding.wait(lambda: (future.id, False) in holding.cancelled)


def test_a_call_cancelled_elsewhere_ends_the_wait(held: forage.Client) -> None:
    async def main() -> None:
        future = held.submit(add, 1, 2)
        waiting = asyncio.ensure_future(asyncio.wrap_future(future))
        await asyncio.sleep(0)
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())
