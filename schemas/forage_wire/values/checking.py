"""Whether the text of a module is what runs here: only then may the text travel in its place.

A file may have been edited after its import, and a constant may have been given another value
(`helpers.FACTOR = 3`). Code is compared with what the text compiles to; constants with the
literals that the text assigns once.
"""

from collections.abc import Iterator
from functools import lru_cache
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final

from forage_wire.values.user_modules import UserFile, user_file

__all__ = [
    "NotSource",
    "assigned_globals",
    "codes_in",
    "differs_from_text",
    "global_names",
    "same_code",
]


class NotSource(Exception):
    """Why a function cannot travel as source: a clause such as "it is a lambda"."""


_NAMING: Final = frozenset(
    {"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME", "LOAD_CLASSDEREF"}
    | {"LOAD_FROM_DICT_OR_GLOBALS"}
)


def differs_from_text(value: Any, module: ModuleType) -> str:
    """Why a user's function or class is not what the text of its module says; "" where it is.

    Args:
        value: A function or class of that module; of anything else nothing is known.
        module: A user's module.
    """
    loader = getattr(getattr(module, "__spec__", None), "loader", None)
    # pytest rewrites the assertions of test modules: their code is never their text's.
    if type(loader).__module__.startswith("_pytest."):
        return ""
    file = user_file(module.__name__)
    if file is None:
        return ""
    for function in _functions_in(value):
        if function.__globals__ is not module.__dict__:
            continue
        code = function.__code__
        if code.co_filename != module.__dict__.get("__file__"):
            # Made by a decorator (`@dataclass` compiles methods of its own).
            continue
        if not _is_in_text(code, file.text, file.path):
            return f"{file.path} has changed since it was imported"
        changed = _changed_constant(code, module, file)
        if changed:
            return f"{module.__name__}.{changed} has another value now than {file.path} gives it"
    return ""


def _functions_in(value: Any) -> list[FunctionType]:
    if isinstance(value, FunctionType):
        return [value]
    if isinstance(value, type):
        return [item for item in vars(value).values() if isinstance(item, FunctionType)]
    return []


def _changed_constant(code: CodeType, module: ModuleType, file: UserFile) -> str:
    literals = _literals(file.text)
    for name in global_names(code):
        if name in literals and repr(literals[name]) != repr(module.__dict__.get(name)):
            return name
    return ""


@lru_cache(maxsize=1_024)
def _is_in_text(code: CodeType, text: str, path: str) -> bool:
    whole = _compiled(text, path)
    return whole is not None and any(
        made.co_qualname == code.co_qualname and same_code(made, code) for made in codes_in(whole)
    )


@lru_cache(maxsize=64)
def _compiled(text: str, path: str) -> CodeType | None:
    try:
        code: CodeType = compile(text, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return None
    return code


@lru_cache(maxsize=64)
def _literals(text: str) -> dict[str, Any]:
    """The names that a module gives a literal constant, once and at its top level."""
    import ast

    tree = ast.parse(text)
    found: dict[str, Any] = {}
    times: dict[str, int] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            times[node.id] = times.get(node.id, 0) + 1
        elif isinstance(node, ast.Global):
            times.update((name, 2) for name in node.names)
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target = statement.targets[0]
            if isinstance(target, ast.Name) and isinstance(statement.value, ast.Constant):
                found[target.id] = statement.value.value
    return {name: value for name, value in found.items() if times.get(name) == 1}


def codes_in(code: CodeType) -> Iterator[CodeType]:
    """A code object and all within it."""
    yield code
    for constant in code.co_consts:
        if type(constant) is CodeType:
            yield from codes_in(constant)


def same_code(one: CodeType, other: CodeType) -> bool:
    """Whether two code objects of this Python do the same, wherever in a file they are."""
    if (
        one.co_code != other.co_code
        or one.co_names != other.co_names
        or one.co_varnames != other.co_varnames
        or one.co_freevars != other.co_freevars
        or one.co_name != other.co_name
        or len(one.co_consts) != len(other.co_consts)
    ):
        return False
    for mine, theirs in zip(one.co_consts, other.co_consts, strict=True):
        if type(mine) is not type(theirs):
            return False
        if type(mine) is CodeType:
            if not same_code(mine, theirs):
                return False
        elif repr(mine) != repr(theirs):
            return False
    return True


@lru_cache(maxsize=512)
def global_names(code: CodeType) -> tuple[str, ...]:
    """The globals that a function's code names, also in functions within it."""
    import dis

    found: dict[str, None] = {}
    for instruction in dis.get_instructions(code):
        if instruction.opname in _NAMING:
            found[str(instruction.argval)] = None
    for constant in code.co_consts:
        if type(constant) is CodeType:
            found.update(dict.fromkeys(global_names(constant)))
    return tuple(found)


def assigned_globals(code: CodeType) -> tuple[str, ...]:
    """The globals that a function's code assigns or deletes."""
    import dis

    return tuple(
        str(instruction.argval)
        for inner in codes_in(code)
        for instruction in dis.get_instructions(inner)
        if instruction.opname in ("STORE_GLOBAL", "DELETE_GLOBAL")
    )
