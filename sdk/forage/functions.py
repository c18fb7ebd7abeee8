"""What a submission names: a Python function made ready to travel, or one installed on devices."""

from collections.abc import Callable
from typing import Any

from forage.errors import NotSerializable
from forage_wire.limits import CALL_BYTES_MAX
from forage_wire.records import dataclass
from forage_wire.texts import check_text, writable
from forage_wire.values import FunctionCache, ShippedFunction
from forage_wire.values.calls import encode_long_call, encode_short_call

__all__ = ["Target", "long_call_body", "short_call_body", "target_of"]

short_call_body = encode_short_call
"""The serialised arguments of most calls, far below every limit; None: `long_call_body` has it."""

_LABEL_MAX = 64
_NAME_MAX = 128

_cache = FunctionCache()


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A function as a task's header and code name it."""

    function: bytes | tuple[str, str]
    form: str
    label: str
    python_min: int = 11
    code: bytes = b""
    shipped: ShippedFunction | None = None
    """Where it was shipped: arguments need not bring what it brings."""


_targets: dict[bytes, Target] = {}
"""By hash: made once for each version of a function that was shipped."""

_TARGETS_MAX = 4_096


def target_of(fn: Callable[..., Any] | str) -> Target:
    """What to send for `fn`.

    Raises:
        TypeError: `fn` is neither callable nor a text.
        NotSerializable: It cannot travel; says what in it.
        ValueError: The text is no name of a function.
    """
    if isinstance(fn, str):
        if not 0 < len(fn) <= _NAME_MAX:
            raise ValueError(f"A named function has a name of 1 to {_NAME_MAX} characters.")
        check_text(fn, f"The function's name {fn!r}")
        return Target(function=(fn, ""), form="named", label=fn[:_LABEL_MAX])
    if not callable(fn):
        raise TypeError(
            f"{fn!r} cannot be submitted: give a function and its arguments, as in submit(f, 1), "
            "or the name of a function that is installed on devices."
        )
    shipped = _cache.get(fn)
    target = _targets.get(shipped.hash)
    if target is None:
        if len(shipped.blob) > CALL_BYTES_MAX:
            raise NotSerializable(
                f"The function {shipped.name} takes {len(shipped.blob)} bytes with what it refers "
                f"to, above the limit of {CALL_BYTES_MAX}; pass large data as arguments, or keep "
                "it in a file on the devices."
            )
        target = Target(
            function=shipped.hash,
            form=shipped.form,
            label=writable(shipped.name)[:_LABEL_MAX],
            python_min=shipped.python_min,
            code=shipped.blob,
            shipped=shipped,
        )
        if len(_targets) >= _TARGETS_MAX:
            _targets.clear()
        _targets[shipped.hash] = target
    return target


def long_call_body(
    fn: Callable[..., Any] | str, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bytes:
    """The serialised arguments of one call of `target`, which `fn` was made into.

    For those of which `short_call_body` makes none.

    Raises:
        NotSerializable: An argument cannot travel, or they are above the limit together.
    """
    body = encode_long_call(args, kwargs, None if isinstance(fn, str) else fn, target.shipped)
    if len(body) > CALL_BYTES_MAX:
        raise NotSerializable(
            f"The arguments take {len(body)} bytes, above the limit of {CALL_BYTES_MAX} (16 MiB) "
            "for one call; split them over several calls."
        )
    return body
