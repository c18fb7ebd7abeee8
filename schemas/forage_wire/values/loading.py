"""How a worker makes a shipped function callable again."""

import importlib
import sys
from collections.abc import Callable
from typing import Any

import cbor2

from forage_wire.errors import DecodeError, VersionMismatch
from forage_wire.values.modules import (
    Bundle,
    activate,
    active_bundle,
    attribute_of,
    module_text_of,
)
from forage_wire.values.pickles import PYTHON, load_pickle

__all__ = ["enter", "load"]


_BUNDLE = "__forage_bundle__"


def load(blob: bytes, form: str, python: str) -> Callable[..., Any]:
    """The function in a blob.

    The callable makes the function's own modules the visible ones when it is called, and they
    stay so until another function's are: decode its arguments after loading it, and encode its
    result before another one runs. One call at a time in a process.

    Args:
        blob: `ShippedFunction.blob`.
        form: `ShippedFunction.form`.
        python: `ShippedFunction.python`.

    Raises:
        VersionMismatch: A pickle of another Python minor, or source with a newer grammar.
        DecodeError: Not a blob.
        Exception: Whatever the user's modules raise while they are imported.
    """
    try:
        raw = cbor2.loads(blob)
    # Hostile bytes make cbor2 raise many things, also RecursionError and MemoryError.
    except Exception as error:
        raise DecodeError(f"a function is not CBOR: {type(error).__name__}") from None
    if type(raw) is not dict or type(raw.get("modules")) is not list:
        raise DecodeError("a function is not a map with modules")
    bundle = Bundle(module_text_of(row) for row in raw["modules"])
    if "pickle" in raw:
        if form != "source" and python != PYTHON:
            raise VersionMismatch(_why(raw.get("why"), python))
        activate(bundle)
        function = load_pickle(raw["pickle"], None, "the function")
    else:
        entry = raw.get("entry")
        if type(entry) is not list or len(entry) != 2 or set(map(type, entry)) != {str}:
            raise DecodeError("a function's entry is not [module, path]")
        activate(bundle)
        module = _imported(entry[0], entry[1], bundle)
        package = vars(module).get("__package__")
        if entry[0] == "__main__" and package:
            # As where a package runs with `python -m`: its name tells relative imports the way.
            module.__spec__.name = f"{package}.__main__"
        try:
            function = attribute_of(module, entry[1])
        except AttributeError as error:
            raise DecodeError(f"the function {entry[0]}.{entry[1]} is not there: {error}") from None
    if not callable(function):
        raise DecodeError("what was shipped as a function cannot be called")
    return _within(bundle, function)


def _why(reason: object, python: str) -> str:
    because = f" because {reason[:500]}" if type(reason) is str else ""
    return (
        f"the function travels as a pickle{because}, which ties it to Python {python[:8]}; this "
        f"device runs Python {PYTHON}. Move it into a module of its own (a module travels as "
        f"text), or use a device with Python {python[:8]}"
    )


def _imported(module: str, path: str, bundle: Bundle) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if module in bundle.texts or error.name is None:
            raise
        raise ModuleNotFoundError(
            f"the function {module}.{path} needs the module {error.name}, which is not installed "
            f"on this device (Python {PYTHON}, {sys.prefix})",
            name=error.name,
        ) from None


def _within(bundle: Bundle, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if active_bundle() is not bundle:
            activate(bundle)
        return function(*args, **kwargs)

    call.__wrapped__ = function  # type: ignore[attr-defined]
    setattr(call, _BUNDLE, bundle)
    return call


def enter(function: Callable[..., Any]) -> None:
    """Make a function's own modules the visible ones, before its arguments are decoded.

    Args:
        function: What `load` gave, or a function that was there already and brings no modules.
    """
    bundle = getattr(function, _BUNDLE, None)
    if active_bundle() is not bundle:
        activate(bundle)
