"""`Client`: a `concurrent.futures.Executor` whose workers are devices behind an MQTT broker."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from forage.batch import Batch
from forage.core.events import CallsCancelled
from forage.functions import long_call_body, short_call_body, target_of
from forage.future import Future
from forage.info import Attempt, DeviceInfo, Explanation, TaskInfo
from forage.mapping import map_all, map_buffered, submit_batch
from forage.options import check_agree, merge_options
from forage_wire.messages import Options
from forage_wire.ranges import Ranges
from forage_wire.replicas import ReplicaLayout
from forage_wire.topics import split_call

if TYPE_CHECKING:
    from forage.agreement import Agree
    from forage.shell.network import Network

__all__ = ["Client"]

_T = TypeVar("_T")


class Client(Executor):
    """A connection to a fleet; made by `forage.connect`. Safe for use by several threads.

    An Executor with everything that the standard library promises of one. In addition: futures
    can be awaited, `submit_all` makes one task of many calls, `options` gives a view whose
    submissions carry options, and devices and tasks can be looked at.

    `submit` merges calls: what is submitted while earlier calls are under way travels together.
    It waits while more than 64 MiB of arguments are not safely with the controller.
    """

    _agree: "Agree | None" = None
    """Whether two results of a call's replicas agree; None: they are the same."""

    def __init__(self, network: "Network", options: Options | None = None) -> None:
        self._network = network
        self._options = Options() if options is None else options
        self._end = weakref.finalize(self, network.abandon)
        # The end of the interpreter is seen to by `forage.shell.leaving`, in its own order.
        self._end.atexit = False

    @property
    def id(self) -> str:
        """This client's id: what its tasks' ids begin with."""
        return self._network.client

    @property
    def user(self) -> str:
        """On whose behalf it works."""
        return self._network.user

    @property
    def broker_url(self) -> str:
        """The broker's address, without a password."""
        return str(self._network.address)

    # -- submitting ---------------------------------------------------------------------------

    def submit(self, fn: Callable[..., _T] | str, /, *args: Any, **kwargs: Any) -> Future[_T]:
        """Run `fn(*args, **kwargs)` on a device.

        Args:
            fn: A function, which travels with all that it needs and that devices do not have;
                or the name of one that is installed on devices, such as "org.app.task".
            *args: Positional arguments, at most 16 MiB with the others.
            **kwargs: Keyword arguments.

        Raises:
            NotSerializable: The function or an argument cannot travel; says which and why.
            RuntimeError: After `shutdown`, or in a forked child of the process that connected.
        """
        target = target_of(fn)
        body = None if kwargs else short_call_body(args)
        if body is None:
            body = long_call_body(fn, target, args, kwargs)
        return self._network.submit(target, self._options, body, self._agree)

    def map(
        self,
        fn: Callable[..., _T] | str,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[_T]:
        """`fn` of each set of arguments; an iterator of the results in their order.

        Args:
            fn: As in `submit`.
            *iterables: One for each argument; the shortest ends it.
            timeout: Seconds from this call after which a result that is not there raises
                TimeoutError.
            chunksize: A hint, as in the standard library. Calls are grouped by how long they
                take, so it changes nothing.
            buffersize: At most so many calls are under way whose results were not yielded, and
                the iterables are read as far as that; None reads and submits all at once.

        Raises:
            Exception: What a call raised, when its result is due. The calls that are left are
                then cancelled, as they are when the iterator is closed or dropped.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        rows = zip(*iterables)  # noqa: B905 - the shortest ends it, as `Executor.map` has it
        if buffersize is None:
            return map_all(self._network, fn, self._options, rows, timeout, self._agree)
        return map_buffered(self, fn, rows, timeout, buffersize)

    def submit_all(self, fn: Callable[..., _T] | str, *iterables: Iterable[Any]) -> Batch[_T]:
        """One task of as many calls as the shortest iterable has items.

        Made for many calls: they cost a few bytes each here, and futures only where asked for.
        """
        rows = zip(*iterables)  # noqa: B905 - as in `map`
        return Batch(submit_batch(self._network, fn, self._options, rows, self._agree))

    def options(self, **options: Any) -> "Client":
        """A view on this connection whose submissions carry these options.

        Args:
            requires: What a device must have: "camera", "room=lab", "memory_mb>=512", a list of
                such, or a mapping.
            device: The device that is to run it, by name or as `DeviceInfo`; or a list: any of
                them.
            retries: Runs after the first one where a call raises or runs too long; 0.
            timeout_s: Seconds after which a call is ended (`TaskTimeout`); None: never.
            priority: -100 to 100; higher goes first.
            at_most_once: Never run a call again that may have started (`DeviceLost` instead).
            fresh: Each call in a worker process of its own.
            wait_s: Seconds to wait while no eligible device is alive (`NoDevice`); 30.
            replicas: Run each call on so many devices, each of them once, and believe what a
                quorum of them says; 1.
            quorum: How many of them must agree (`NoQuorum` if they cannot); None: the majority.
            agree: `agree(a, b)` says whether two results do; None: they must be the same to the
                bit. It runs here, in a thread of its own, and may not wait for calls. Errors
                agree where their types and messages are equal.

        Views share the connection and cannot be shut down; views of views add up.
        """
        agree = options.pop("agree", self._agree)
        merged = merge_options(self._options, options)
        return _View(self, merged, check_agree(agree, merged))

    # -- looking --------------------------------------------------------------------------------

    def attach(self, name: str) -> Batch[Any]:
        """The outcomes of a task that another process of the same user submitted.

        Args:
            name: A task's id; or a call's name, for a batch of that call alone.

        Raises:
            ValueError: `name` is neither.
            Refused: The controller knows no such task of this user.
        """
        task, index = _split(name)
        known = self._network.find(task)
        if known is None:
            info = self.task(task)
        else:
            info = TaskInfo(task=task, label=known.label, calls=known.count)
        if index is not None and index >= info.calls:
            raise ValueError(f"The task {task} has {info.calls} calls; there is no {name}.")
        calls = self._network.attach(info)
        return Batch(calls) if index is None else Batch(calls, index, index + 1)

    def devices(self) -> list[DeviceInfo]:
        """All devices that the controller knows."""
        return [DeviceInfo.from_row(row, self) for row in self._network.queries.ask("devices")]

    def device(self, name: str) -> DeviceInfo:
        """One device; LookupError where the controller knows none of that name."""
        for device in self.devices():
            if device.name == name:
                return device
        raise LookupError(f"The controller knows no device {name!r}; see `forage device ls`.")

    def tasks(self, *, ended: bool = False) -> list[TaskInfo]:
        """The tasks of this user that the controller keeps.

        Args:
            ended: Also those whose results were collected lately, as far as it remembers them.
        """
        arguments = {"ended": "true"} if ended else {}
        return [TaskInfo.from_row(row) for row in self._network.queries.ask("tasks", **arguments)]

    def task(self, name: str) -> TaskInfo:
        """One task, by its id or by the name of one of its calls."""
        task, _index = _split(name)
        return TaskInfo.from_row(self._network.queries.ask("task", task))

    def history(self, name: str) -> list[Attempt]:
        """The attempts of a task or call, oldest first."""
        _split(name)
        return self._network.queries.history(name)

    def explain(self, name: str) -> Explanation:
        """Where a task or call is and why; `print` it."""
        _split(name)
        return self._network.queries.explain(name)

    def logs(self, name: str) -> list[str]:
        """The last 64 KiB of what a task's code wrote, as lines `17 out text`."""
        _split(name)
        return self._network.queries.logs(name)

    def cancel(self, name: str, *, force: bool = False) -> None:
        """Cancel a task or call by name, also of another process of the same user.

        Args:
            name: A task's id or a call's name.
            force: Also end what runs.
        """
        task, index = _split(name)
        known = self._network.find(task)
        if known is not None:
            low, high = (0, known.count) if index is None else (index, index + 1)
            self._network.cancel_within(known, low, high, force)
            return
        info = self.task(task)
        ranges: Ranges = ((0, info.calls) if index is None else (index, index + 1),)
        if info.replicas > 1:
            ranges = ReplicaLayout(info.replicas, info.blocks, info.calls).runs_of(ranges)
        self._network.tell(CallsCancelled(task=task, ranges=ranges, force=force))

    def drain(self, device: str, on: bool = True) -> None:
        """Let a device finish what it runs and take nothing new; `on=False` takes that back."""
        self._network.queries.ask("drain", device, on="true" if on else "false")

    # -- the end ----------------------------------------------------------------------------------

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and disconnect when those there are have ended.

        Args:
            wait: Return only then, with all callbacks run. Otherwise that happens in the
                background; an interpreter that ends before hands over what was submitted and
                names the tasks to attach.
            cancel_futures: Cancel the calls that are pending.
        """
        self._network.close(wait=False)
        if cancel_futures:
            self._network.cancel_all()
        if wait:
            self._network.close(wait=True)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> bool | None:
        self.shutdown(wait=True)
        return None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} of {self.user} at {self.broker_url}>"


class _View(Client):
    """The same connection with other options."""

    def __init__(self, parent: Client, options: Options, agree: "Agree | None") -> None:
        self._network = parent._network
        self._options = options
        self._agree = agree
        # The connection ends when nobody has the client any more; a view of it counts.
        self._parent = parent

    def __enter__(self) -> Self:
        raise RuntimeError(_VIEW_TEXT)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Views are not shut down: RuntimeError."""
        del wait, cancel_futures
        raise RuntimeError(_VIEW_TEXT)


_VIEW_TEXT = "This is a view made by options(); shut down the client that it was made from."


def _split(name: str) -> tuple[str, int | None]:
    found = split_call(name) if isinstance(name, str) else None
    if found is None:
        raise ValueError(
            f"{name!r} is neither a task's id nor a call's name; they look like "
            "0123456789abc-1 and 0123456789abc-1.17."
        )
    return found
