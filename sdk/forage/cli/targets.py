"""From what users type, `FILE:FUNC ARGS…`, to a function and its arguments.

`FILE:FUNC` is a function of a Python file; `MODULE:FUNC` one of an importable module; a name with
dots and without a colon, `org.app.task`, is a function installed on devices.
"""

import importlib
import importlib.util
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from forage.cli.endings import Ending

__all__ = ["TargetCommand", "keywords_of", "target_named", "value_of"]

_INSTALLED = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+")
_NUMBER = re.compile(r"-(\d|\.\d|Infinity$)")


def target_named(text: str) -> Callable[..., Any] | str:
    """The function that `text` names, loaded; or the name itself of one installed on devices.

    Raises:
        Ending: There is no such file, module or function; or the file fails when it is loaded.
    """
    place, colon, path = text.rpartition(":")
    if not colon:
        if _INSTALLED.fullmatch(text) and not text.endswith(".py"):
            return text
        raise Ending(
            f"{text!r} does not say which function: write FILE:FUNC, such as `forage run "
            f"{text if text.endswith('.py') else 'jobs.py'}:main`, or MODULE:FUNC."
        )
    if not place or not path:
        raise Ending(f"{text!r} is not FILE:FUNC or MODULE:FUNC, such as jobs.py:resize.")
    is_file = place.endswith(".py") or os.sep in place
    module = _load_file(Path(place)) if is_file else _load_module(place)
    return _function(module, place, path)


def _load_file(path: Path) -> ModuleType:
    """A file as a module of its own name, with its folder first on the path, as `python FILE` does."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise Ending(f"The file {path} {what}; give the path of a Python file, FILE:FUNC.")
    resolved = path.resolve()
    folder = str(resolved.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = _module_name(resolved)
    spec = importlib.util.spec_from_file_location(name, resolved)
    if spec is None or spec.loader is None:
        raise Ending(f"The file {path} is not a Python file: its name must end with .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with _loading(str(path), resolved):
        spec.loader.exec_module(module)
    return module


def _module_name(path: Path) -> str:
    """The file's own name, unless that already means another module to Python."""
    name = path.stem
    if not name.isidentifier():
        return "forage_file_" + re.sub(r"\W", "_", name)
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    is_other = spec is not None and (spec.origin is None or Path(spec.origin).resolve() != path)
    return f"forage_file_{name}" if is_other or name in sys.modules else name


def _load_module(name: str) -> ModuleType:
    # As `python -m` does; a console script has its own folder there instead.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        known = importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        known = False
    if not known:
        raise Ending(
            f"There is no module {name!r} here; for a file, write its path with .py, as in "
            f"{name.rpartition('.')[2]}.py:FUNC."
        )
    with _loading(name, None):
        return importlib.import_module(name)


class _loading:
    """Whatever loading a user's code raises becomes one sentence that says where."""

    def __init__(self, shown: str, path: Path | None) -> None:
        self._shown = shown
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, KeyboardInterrupt):
            return
        line = self._line_of(error)
        where = f"{self._shown}, line {line}" if line else self._shown
        text = str(error).splitlines()[0] if str(error) else ""
        raise Ending(
            f"{where}: loading it raised {type(error).__name__}{f': {text}' if text else ''}."
        ) from error

    def _line_of(self, error: BaseException) -> int | None:
        if isinstance(error, SyntaxError):
            is_own = self._path is None or error.filename == str(self._path)
            return error.lineno if is_own else None
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if self._path is not None and frame.filename == str(self._path)
        ]
        return lines[-1] if lines else None


def _function(module: ModuleType, place: str, path: str) -> Callable[..., Any]:
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part, None)
    if callable(found):
        function: Callable[..., Any] = found
        return function
    if found is not None:
        raise Ending(f"{place}:{path} is {type(found).__name__}, not a function.")
    own = sorted(
        name
        for name, value in vars(module).items()
        if callable(value)
        and not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
    )
    has = f"it has {', '.join(own[:12])}" if own else "it has none"
    raise Ending(f"{place} has no function {path!r}; {has}.")


def value_of(text: str) -> Any:
    """An argument as typed: JSON where it is JSON, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def keywords_of(pairs: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE` as keyword arguments."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise Ending(f"--kw takes NAME=VALUE, such as --kw size=10, not {pair!r}.")
        if name in found:
            raise Ending(f"--kw {name} is given twice.")
        found[name] = value_of(text)
    return found


class TargetCommand(click.Command):
    """A command whose `arguments` may be negative numbers, and anything after `--`."""

    ignore_unknown_options = True

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        literal = args[args.index("--") + 1 :] if "--" in args else []
        rest = super().parse_args(ctx, args)
        for word in ctx.params.get("arguments", ()):
            if word.startswith("-") and not _NUMBER.match(word) and word not in ("-", *literal):
                raise click.NoSuchOption(word, ctx=ctx)
        return rest
