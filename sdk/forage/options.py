"""Options of submissions: from what users write to what goes into a task's header."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from forage_wire.limits import LEASE_MS_MIN, REPLICAS_MAX
from forage_wire.messages import Options
from forage_wire.records import replace
from forage_wire.texts import check_text
from forage_wire.topics import is_name

if TYPE_CHECKING:
    from forage.agreement import Agree

__all__ = ["check_agree", "merge_options"]

_LEASE_MS_MAX = 3_600_000


def merge_options(base: Options, given: Mapping[str, Any]) -> Options:
    """`base` with what the user gave in its place.

    Raises:
        TypeError: There is no such option, or its value has the wrong type.
        ValueError: A value is out of its range.
    """
    changes: dict[str, Any] = {}
    for name, value in given.items():
        parse = _PARSERS.get(name)
        if parse is None:
            raise TypeError(f"There is no option {name!r}; the options are {_NAMES}.")
        changes.update(parse(value))
    if "replicas" in changes:
        # A quorum is one of so many replicas: of others there is another majority.
        changes.setdefault("quorum", 0)
    merged = replace(base, **changes)
    _check_together(merged)
    return _shared(merged)


def _check_together(options: Options) -> None:
    """What options say of each other."""
    replicas, quorum, named = options.replicas, options.quorum, len(dict.fromkeys(options.devices))
    if quorum > replicas:
        raise ValueError(
            f"quorum={quorum} of replicas={replicas} can never agree; ask for a quorum of at most "
            f"{replicas}, or for more replicas."
        )
    for name, is_given in (
        ("at_most_once", options.at_most_once),
        ("exclusive", options.exclusive),
    ):
        if replicas > 1 and is_given:
            raise ValueError(
                f"replicas and {name} contradict each other: replicas run a call several times, "
                "and at once."
            )
    if replicas > 1 and 0 < named < replicas:
        raise ValueError(
            f"replicas={replicas} takes as many devices, and device names {named}; name more of "
            "them, or use requires."
        )


def check_agree(agree: Any, options: Options) -> "Agree | None":
    """The comparison for submissions with these options.

    Raises:
        TypeError: It is no function.
        ValueError: There is nothing to compare.
    """
    if agree is None:
        return None
    if not callable(agree):
        raise TypeError(f"agree takes a function of two results, not {agree!r}.")
    if options.replicas == 1:
        raise ValueError("agree compares the results of replicas; give replicas= too.")
    return agree  # type: ignore[no-any-return]


@lru_cache(maxsize=1_024)
def _shared(options: Options) -> Options:
    """The same object for equal options: calls of the same object are merged."""
    return options


def _requires(value: Any) -> dict[str, Any]:
    if value is None:
        return {"requires": ()}
    if isinstance(value, str):
        items = [value]
    elif isinstance(value, Mapping):
        items = [key if wanted is True else f"{key}={wanted}" for key, wanted in value.items()]
    else:
        items = list(value)
    if len(items) > 32 or not all(isinstance(item, str) and 0 < len(item) <= 128 for item in items):
        raise ValueError(
            "requires takes a text or at most 32 of them, such as 'camera', 'room=lab' or "
            "'memory_mb>=512', of at most 128 characters each."
        )
    return {"requires": tuple([check_text(item, f"requires {item!r}") for item in items])}


def _device(value: Any) -> dict[str, Any]:
    if value is None:
        return {"devices": ()}
    each = [value] if isinstance(value, str) or hasattr(value, "name") else list(value)
    names = [item if isinstance(item, str) else getattr(item, "name", None) for item in each]
    for name in names:
        if not isinstance(name, str) or not is_name(name):
            raise ValueError(f"device takes a device's name or a list of names, not {name!r}.")
    if len(names) > 256:
        raise ValueError("device takes at most 256 names; use labels and requires for more.")
    return {"devices": tuple(names)}


def _retries(value: Any) -> dict[str, Any]:
    return {"retries": _integer("retries", value, 0, 1_000)}


def _priority(value: Any) -> dict[str, Any]:
    return {"priority": _integer("priority", value, -100, 100)}


def _timeout_s(value: Any) -> dict[str, Any]:
    return {"timeout_ms": 0 if value is None else max(1, _milliseconds("timeout_s", value))}


def _wait_s(value: Any) -> dict[str, Any]:
    return {"wait_ms": _milliseconds("wait_s", value)}


def _backoff_s(value: Any) -> dict[str, Any]:
    return {"backoff_ms": _milliseconds("backoff_s", value)}


def _deadline_s(value: Any) -> dict[str, Any]:
    if value is None:
        return {"deadline_ms": 0}
    return {"deadline_ms": max(1, _milliseconds("deadline_s", value))}


def _lease_s(value: Any) -> dict[str, Any]:
    lease_ms = _milliseconds("lease_s", value)
    if not LEASE_MS_MIN <= lease_ms <= _LEASE_MS_MAX:
        raise ValueError(
            f"lease_s takes a number of seconds from {LEASE_MS_MIN / 1000:g} to "
            f"{_LEASE_MS_MAX // 1000}, not {value}."
        )
    return {"lease_ms": lease_ms}


def _exclusive(value: Any) -> dict[str, Any]:
    return {"exclusive": _boolean("exclusive", value)}


def _clones(value: Any) -> dict[str, Any]:
    return {"clones": _boolean("clones", value)}


def _at_most_once(value: Any) -> dict[str, Any]:
    return {"at_most_once": _boolean("at_most_once", value)}


def _replicas(value: Any) -> dict[str, Any]:
    return {"replicas": _integer("replicas", value, 1, REPLICAS_MAX)}


def _quorum(value: Any) -> dict[str, Any]:
    return {"quorum": 0 if value is None else _integer("quorum", value, 1, REPLICAS_MAX)}


def _fresh(value: Any) -> dict[str, Any]:
    return {"fresh": _boolean("fresh", value)}


def _integer(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} takes an integer, not {value!r}.")
    if not low <= value <= high:
        raise ValueError(f"{name} takes an integer from {low} to {high}, not {value}.")
    return value


def _milliseconds(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} takes a number of seconds, not {value!r}.")
    if not 0 <= value <= 10**9:
        raise ValueError(f"{name} takes a number of seconds of 0 or more, not {value}.")
    return round(value * 1000)


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} takes True or False, not {value!r}.")
    return value


_PARSERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "requires": _requires,
    "device": _device,
    "retries": _retries,
    "timeout_s": _timeout_s,
    "priority": _priority,
    "at_most_once": _at_most_once,
    "fresh": _fresh,
    "wait_s": _wait_s,
    "backoff_s": _backoff_s,
    "deadline_s": _deadline_s,
    "clones": _clones,
    "exclusive": _exclusive,
    "lease_s": _lease_s,
    "replicas": _replicas,
    "quorum": _quorum,
}
_NAMES = ", ".join((*_PARSERS, "agree"))
