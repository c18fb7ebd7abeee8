"""Which outcomes of a call's replicas agree: the vote of one call, and what is told of it.

Nothing here waits, locks or sends; users' comparison functions and `==` run here, in whatever
thread calls (`forage.voting`).
"""

import pickle
import reprlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from forage.errors import NoQuorum, TaskFailed

__all__ = ["Agree", "Decision", "Replicas", "Vote", "alike", "majority"]

Agree = Callable[[Any, Any], Any]
"""Whether two results are as good as equal."""

_TEXT_CHARACTERS = 80
_DEVICES_NAMED = 16


def majority(replicas: int) -> int:
    """The least that is more than half."""
    return replicas // 2 + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """What became of the replicas of a call (or, of a batch, of all its calls together)."""

    count: int
    """Replicas asked for."""
    agreed: tuple[str, ...] = ()
    """Devices whose outcomes agreed, the one whose outcome counts first."""
    disagreed: tuple[str, ...] = ()
    """Devices whose outcomes were others."""
    failed: int = 0
    """Replicas that no device answered for: none was found, or it was lost too often."""
    cancelled: int = 0
    """Replicas that were not needed any more, whether they ran or not."""


@dataclass(slots=True)
class _Ballot:
    """One outcome."""

    device: str
    value: Any
    error: BaseException | None
    support: int = 1
    """Ballots that agree with it, itself included."""
    agrees: list["_Ballot"] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """How a call ends."""

    value: Any
    error: BaseException | None
    device: str | None
    replicas: Replicas


class Vote:
    """The vote of one call.

    Args:
        name: The call's name, for people.
        replicas: Outcomes that there can be.
        quorum: How many of them must agree.
        agree: Whether two results do; None: `alike`.
    """

    __slots__ = ("_agree", "_ballots", "_doubt", "_failures", "_name", "_quorum", "_replicas")

    def __init__(self, name: str, replicas: int, quorum: int, agree: Agree | None) -> None:
        self._name = name
        self._replicas = replicas
        self._quorum = quorum
        self._agree = agree
        self._ballots: list[_Ballot] = []
        self._failures: list[BaseException] = []
        self._doubt: BaseException | None = None
        """What a comparison raised."""

    def add(self, device: str, value: Any, error: BaseException | None) -> Decision | None:
        """Count an outcome; how the call ends, once that is certain.

        Args:
            device: Whose; empty: no device's, the controller gave the replica up (`error`).
            value: The result.
            error: What the call raised instead.
        """
        if not device or any(ballot.device == device for ballot in self._ballots):
            # Of one device a single outcome counts, whatever else it says.
            twice = NoQuorum(f"{device} answered for a replica beside its own")
            self._failures.append(error if not device and error is not None else twice)
        else:
            ballot = _Ballot(device, value, error)
            for other in self._ballots:
                if self._agrees(other, ballot):
                    for one, another in ((other, ballot), (ballot, other)):
                        one.support += 1
                        one.agrees.append(another)
            self._ballots.append(ballot)
        for ballot in self._ballots:
            if ballot.support >= self._quorum:
                return self._won(ballot)
        left = self._replicas - len(self._ballots) - len(self._failures)
        if max([ballot.support for ballot in self._ballots], default=0) + left >= self._quorum:
            return None
        return self._lost()

    def _agrees(self, one: _Ballot, another: _Ballot) -> bool:
        if one.error is not None or another.error is not None:
            return _errors_alike(one.error, another.error)
        try:
            return bool((self._agree or alike)(one.value, another.value))
        except BaseException as error:
            # One device's nonsense must not end the call: what cannot be compared disagrees.
            self._doubt = self._doubt or error
            return False

    def _won(self, winner: _Ballot) -> Decision:
        agreed = [winner, *winner.agrees]
        others = [ballot.device for ballot in self._ballots if ballot not in agreed]
        return Decision(
            value=winner.value,
            error=winner.error,
            device=winner.device,
            replicas=self._counted(tuple(ballot.device for ballot in agreed), tuple(others)),
        )

    def _counted(self, agreed: tuple[str, ...], disagreed: tuple[str, ...]) -> Replicas:
        ended = len(self._ballots) + len(self._failures)
        return Replicas(
            count=self._replicas,
            agreed=agreed,
            disagreed=disagreed,
            failed=len(self._failures),
            cancelled=self._replicas - ended,
        )

    def _lost(self) -> Decision:
        devices = tuple([ballot.device for ballot in self._ballots])
        replicas = self._counted((), devices)
        error: BaseException
        if self._failures and all(ballot.support == len(self._ballots) for ballot in self._ballots):
            # Nobody disagrees: it is for want of devices alone.
            error = self._failures[0]
            replicas = self._counted(devices, ())
        else:
            error = NoQuorum(self._differences(), outcomes=self._words())
            error.__cause__ = self._doubt or (self._failures[0] if self._failures else None)
        return Decision(value=None, error=error, device=None, replicas=replicas)

    def _words(self) -> dict[str, str]:
        return {
            ballot.device: (
                f"returned {_text(ballot.value)}"
                if ballot.error is None
                else f"raised {_text(ballot.error)}"
            )
            for ballot in self._ballots
        }

    def _differences(self) -> str:
        known = [f"{device} {words}" for device, words in self._words().items()]
        known = known[:_DEVICES_NAMED]
        known += [f"one had no outcome ({_text(error)})" for error in self._failures[:1]]
        text = (
            f"No {self._quorum} of the {self._replicas} replicas of {self._name} agree: "
            f"{'; '.join(known)}."
        )
        if self._doubt is not None:
            return f"{text} Comparing them raised {_text(self._doubt)}."
        return f"{text} Look at these devices, or say with agree= which results are alike."


def _text(value: Any) -> str:
    """A value in few characters, whatever its class does."""
    try:
        if isinstance(value, BaseException):
            text = f"{type(value).__name__}: {value}" if str(value) else type(value).__name__
        else:
            text = _repr.repr(value)
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= _TEXT_CHARACTERS else f"{text[: _TEXT_CHARACTERS - 3]}..."


_repr: Final = reprlib.Repr()
_repr.maxstring = _repr.maxother = _TEXT_CHARACTERS


def _errors_alike(one: BaseException | None, another: BaseException | None) -> bool:
    """Errors agree where type and message do; one that could not be rebuilt says its type."""
    if one is None or another is None or type(one) is not type(another):
        return False
    if isinstance(one, TaskFailed) and isinstance(another, TaskFailed):
        mine, other = (one.type_name, one.reason), (another.type_name, another.reason)
        if mine != other:
            return False
    return _message(one) == _message(another)


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return repr(error.args)


# -- equality ---------------------------------------------------------------------------------


def alike(one: Any, another: Any) -> bool:
    """Whether two results are the same, to the bit where that can be said.

    Types must be the same, also within lists, tuples and dicts. Arrays: the same dtype, shape and
    bytes; NaN is like NaN. Objects whose class says nothing of `==`: by their pickles.
    """
    kind = type(one)
    if kind is not type(another):
        return False
    if one is another:
        return True
    if kind in (list, tuple):
        return len(one) == len(another) and all(map(alike, one, another))
    if kind is dict:
        return one.keys() == another.keys() and all(alike(one[key], another[key]) for key in one)
    if kind is float or kind is complex:
        return bool(one == another) or (one != one and another != another)
    if hasattr(one, "dtype") and hasattr(one, "tobytes"):
        return _arrays_alike(one, another)
    if "__eq__" not in {name for each in kind.__mro__[:-1] for name in vars(each)}:
        return pickle.dumps(one) == pickle.dumps(another)
    return bool(one == another)


def _arrays_alike(one: Any, another: Any) -> bool:
    """numpy arrays and scalars."""
    if one.dtype != another.dtype or one.shape != another.shape:
        return False
    if one.dtype.hasobject:
        return all(map(alike, one.ravel().tolist(), another.ravel().tolist()))
    return bool(one.tobytes() == another.tobytes())
