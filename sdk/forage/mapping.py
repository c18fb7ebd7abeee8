"""`Client.map` and `submit_all`: many calls from iterables, and results in their order.

Nothing here refers to a result once it was yielded.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from forage.batch import BatchCalls
from forage.functions import long_call_body, short_call_body, target_of
from forage.future import Future
from forage_wire.limits import CALLS_PER_PAGE_MAX, PACKET_BYTES_MAX
from forage_wire.messages import Options

if TYPE_CHECKING:
    from forage.agreement import Agree
    from forage.client import Client
    from forage.shell.network import Network

__all__ = ["map_all", "map_buffered", "submit_batch"]

_FIRST_PORTION = 64
"""The first calls leave soon, so that devices begin while the rest is being serialised."""
_PORTION_BYTES = 8 * PACKET_BYTES_MAX
"""Arguments handed over at a time."""


def submit_batch(
    network: "Network",
    fn: Callable[..., Any] | str,
    options: Options,
    rows: Iterator[tuple[Any, ...]],
    agree: "Agree | None" = None,
) -> BatchCalls:
    """One task of all rows, sent while they are read.

    Raises what the iterables or serialisation raise; what was submitted by then is cancelled.
    """
    target = target_of(fn)
    network.check_open()
    calls: BatchCalls | None = None
    portion: list[bytes] = []
    portion_bytes = 0
    limit = _FIRST_PORTION
    try:
        for row in rows:
            body = short_call_body(row)
            if body is None:
                body = long_call_body(fn, target, row, {})
            # One portion is always kept back: only one that holds calls can be the last.
            if len(portion) >= limit or portion_bytes >= _PORTION_BYTES:
                if calls is None:
                    calls = network.open_batch(target, options, agree, portion, last=False)
                else:
                    network.extend_batch(calls, portion, last=False)
                portion, portion_bytes = [], 0
                limit = min(4 * limit, CALLS_PER_PAGE_MAX)
            portion.append(body)
            portion_bytes += len(body)
            # The row is not to be kept while the next one is being made.
            del row
        if calls is None:
            return network.open_batch(target, options, agree, portion, last=True)
        network.extend_batch(calls, portion, last=True)
        return calls
    except BaseException:
        if calls is not None:
            network.give_up_batch(calls, [] if calls.is_sealed else portion)
        raise


def map_all(
    network: "Network",
    fn: Callable[..., Any] | str,
    options: Options,
    rows: Iterator[tuple[Any, ...]],
    timeout: float | None,
    agree: "Agree | None" = None,
) -> Iterator[Any]:
    """All rows at once, as one task."""
    deadline = None if timeout is None else time.monotonic() + timeout
    return _Results(submit_batch(network, fn, options, rows, agree), deadline)


class _Results:
    """The results of a batch, in order. Closing or dropping it cancels what is left.

    A class and not a generator: one that was never begun would cancel nothing.
    """

    def __init__(self, calls: BatchCalls, deadline: float | None) -> None:
        self._calls: BatchCalls | None = calls
        self._deadline = deadline
        self._next = 0

    def __iter__(self) -> "_Results":
        return self

    def __next__(self) -> Any:
        calls = self._calls
        if calls is None or self._next >= calls.count:
            self._calls = None
            raise StopIteration
        index = self._next
        try:
            if calls.is_open(index):
                calls.wait_for(index, self._deadline)
            self._next = index + 1
            return calls.take(index)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Cancel what was not yielded."""
        calls, self._calls = self._calls, None
        if calls is not None and not calls.network.is_forked:
            calls.network.cancel_within(calls, 0, calls.count, False)

    def __del__(self) -> None:
        calls = self._calls
        if calls is not None and not calls.is_complete:
            # In whatever thread the garbage is collected: the network's own does it.
            self._calls = None
            calls.network.cancel_later(calls)


def map_buffered(
    client: "Client",
    fn: Callable[..., Any] | str,
    rows: Iterator[tuple[Any, ...]],
    timeout: float | None,
    buffersize: int,
) -> Iterator[Any]:
    """At most `buffersize` calls under way whose results were not yielded."""
    deadline = None if timeout is None else time.monotonic() + timeout
    futures = deque(client.submit(fn, *row) for row in islice(rows, buffersize))
    return _buffered(client, fn, rows, deadline, futures)


def _buffered(
    client: "Client",
    fn: Callable[..., Any] | str,
    rows: Iterator[tuple[Any, ...]],
    deadline: float | None,
    futures: deque[Future[Any]],
) -> Iterator[Any]:
    try:
        while futures:
            # The next one is submitted before waiting, as the standard library does.
            row = next(rows, None)
            if row is not None:
                futures.append(client.submit(fn, *row))
                del row
            yield _result_or_cancel(futures.popleft(), deadline)
    finally:
        for future in futures:
            future.cancel()


def _result_or_cancel(future: Future[Any], deadline: float | None) -> Any:
    try:
        try:
            return future.result(None if deadline is None else deadline - time.monotonic())
        finally:
            future.cancel()
    finally:
        # A traceback refers to this frame, which would refer to the future and its result.
        del future
