"""A function of `__main__` as text: itself, the functions and constants that it uses, imports.

A script cannot travel whole: running it is what it is for. So what a function needs is cut out
of it: the text of its `def`, of the functions that it calls, and a preamble of imports and
constants. Lines stay where they are in the file, so that tracebacks point at them. The file
is checked first: it must compile to the code that runs here. `NotSource` says why a function cannot be
cut out; it then goes as a pickle.
"""

import __future__

import ast
import linecache
import re
import sys
from hashlib import sha256
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, Final, NamedTuple

import cbor2

from forage_wire.values.checking import NotSource, assigned_globals, global_names, same_code
from forage_wire.values.modules import FUTURE_ANNOTATIONS, ModuleText, attribute_of, unwrapped
from forage_wire.values.user_modules import (
    absolute_name,
    closure_of,
    imports_in,
    is_on_devices,
    user_file,
)

__all__ = ["extract", "is_constant"]

CONSTANT_CHARACTERS_MAX: Final = 16 * 1024
"""A longer constant makes a pickle of the function: text is no form for data."""

_SCALARS: Final = (int, float, complex, str, bytes, bool, type(None), type(...))
_FLAG_ANNOTATIONS: Final = __future__.annotations.compiler_flag


def is_constant(value: Any) -> bool:
    """Whether a value can never change and can be written down: numbers, text, tuples of them."""
    if isinstance(value, _SCALARS):
        return type(value) in _SCALARS
    if type(value) in (tuple, frozenset):
        return all(is_constant(item) for item in value)
    return type(value) is re.Pattern


def extract(function: FunctionType) -> list[ModuleText]:
    """Cut a function out of the script or notebook that defines it.

    Returns:
        The cut, as the module `__main__`, and the users' modules that it imports.

    Raises:
        NotSource: It cannot be cut out.
    """
    cut = _Cut(function.__globals__)
    cut.add(function)
    return cut.finish()


class _Script(NamedTuple):
    """One file or notebook cell: its lines, and its functions by name and first line."""

    lines: list[str]
    codes: list[CodeType]
    functions: dict[tuple[str, int], ast.FunctionDef | ast.AsyncFunctionDef]
    imports: list[ast.Import | ast.ImportFrom]


class _Cut:
    def __init__(self, namespace: dict[str, Any]) -> None:
        self._namespace = namespace
        self._scripts: dict[str, _Script] = {}
        self._functions: dict[str, FunctionType] = {}
        self._segments: dict[str, dict[int, str]] = {}
        self._preamble: dict[str, None] = {}
        self._imported: list[str] = []
        self._annotations_are_text = False

    def add(self, function: FunctionType) -> None:
        """Take one function, and then everything that it refers to."""
        name = function.__name__
        code = function.__code__
        if function.__closure__ is not None or code.co_freevars:
            raise NotSource(f"{name} uses variables of the function around it")
        if name == "<lambda>":
            raise NotSource("it is a lambda")
        if function.__qualname__ != name or unwrapped(self._namespace.get(name)) is not function:
            raise NotSource(f"{name} is not defined at the top level of its file")
        if function.__dict__:
            raise NotSource(f"{name} has attributes of its own")
        script = self._script(code.co_filename, code.co_flags & _FLAG_ANNOTATIONS)
        node = script.functions.get((name, code.co_firstlineno))
        if node is None:
            raise NotSource(f"the text of {name} is not at hand (or has changed since it ran)")
        # Compared within the whole script, because its imports decide how calls are compiled.
        if not any(
            made.co_firstlineno == code.co_firstlineno and same_code(made, code)
            for made in script.codes
        ):
            raise NotSource(f"the text of {name} is not what runs (has its file changed?)")
        self._functions[name] = function
        if code.co_flags & _FLAG_ANNOTATIONS:
            self._annotations_are_text = True
        first = min([node.lineno, *(item.lineno for item in node.decorator_list)])
        text = "".join(script.lines[first - 1 : node.end_lineno])
        self._segments.setdefault(code.co_filename, {})[first] = text
        _check_defaults(function, node, self._namespace)
        for assigned in assigned_globals(code):
            raise NotSource(f"it assigns the global {assigned}")
        for used in [*global_names(code), *self._names_in_head(node)]:
            self._add_name(used, name, node)

    def _names_in_head(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
        """Names that are evaluated when the `def` is: decorators, defaults, annotations."""
        arguments = node.args
        parts: list[ast.AST | None] = [*node.decorator_list, *arguments.defaults]
        parts += arguments.kw_defaults
        if not self._annotations_are_text:
            parts.append(node.returns)
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            every += [item for item in (arguments.vararg, arguments.kwarg) if item is not None]
            parts += [item.annotation for item in every]
        return [
            item.id
            for part in parts
            if part is not None
            for item in ast.walk(part)
            if isinstance(item, ast.Name)
        ]

    def _script(self, path: str, flags: int) -> _Script:
        if path not in self._scripts:
            linecache.checkcache(path)
            lines = linecache.getlines(path, self._namespace)
            try:
                tree = ast.parse("".join(lines))
                whole = compile("".join(lines), path, "exec", flags, dont_inherit=True)
            except (SyntaxError, ValueError):
                raise NotSource(f"{path} has changed since it ran") from None
            functions = {}
            for node in tree.body:
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    # A code object's first line is that of its first decorator.
                    first = min([node.lineno, *(item.lineno for item in node.decorator_list)])
                    functions[(node.name, first)] = node
            imports = [
                node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)
            ]
            if not lines:
                raise NotSource("its text is not at hand (typed into a plain interpreter?)")
            codes = [code for code in whole.co_consts if type(code) is CodeType]
            self._scripts[path] = _Script(lines, codes, functions, imports)
        return self._scripts[path]

    def _add_name(self, name: str, user: str, node: ast.AST) -> None:
        if name in self._functions or name not in self._namespace:
            # A builtin, or a name that is not there here either.
            return
        value = self._namespace[name]
        inner = unwrapped(value)
        if isinstance(inner, FunctionType) and inner.__globals__ is self._namespace:
            if inner.__name__ != name:
                raise NotSource(f"{user} calls {inner.__name__} by another name, {name}")
            self.add(inner)
            return
        if isinstance(value, ModuleType):
            self._add_module(name, value, node)
            return
        statement = self._import_statement(name, value) or _import_by_name(name, value)
        if statement is None and is_constant(value):
            statement = f"{name} = {_written(value)}"
            if len(statement) > CONSTANT_CHARACTERS_MAX:
                raise NotSource(f"its global {name} is too long to be written down")
        if statement is None:
            raise NotSource(_why_no_constant(name, value))
        self._preamble[statement] = None

    def _add_module(self, name: str, module: ModuleType, node: ast.AST) -> None:
        if not _travels(module.__name__) or sys.modules.get(module.__name__) is not module:
            raise NotSource(f"its global {name} is a module that no device can find")
        self._preamble[_import_as(module.__name__, name)] = None
        # `import a` alone does not give `a.b`: submodules that the text reaches are imported too.
        for chain in _chains(node, name):
            reached = module.__name__
            for part in chain:
                reached = f"{reached}.{part}"
                if reached not in sys.modules:
                    break
                self._preamble[f"__import__({reached!r})"] = None
                self._imported.append(reached)

    def _import_statement(self, name: str, value: Any) -> str | None:
        """The script's own `from … import …` that gives a value its name."""
        package = self._namespace.get("__package__") or ""
        for script in self._scripts.values():
            for node in script.imports:
                if not isinstance(node, ast.ImportFrom):
                    continue
                base = absolute_name(node.module or "", node.level, package)
                for alias in node.names:
                    if base is None or (alias.asname or alias.name) != name:
                        continue
                    module = sys.modules.get(base)
                    if getattr(module, alias.name, None) is value and _travels(base):
                        return f"from {base} import {alias.name} as {name}"
        return None

    def finish(self) -> list[ModuleText]:
        if len(self._segments) != 1:
            # Cells of a notebook: each has lines of its own, so they follow one another.
            text = "\n".join(
                part for path in sorted(self._segments) for part in self._segments[path].values()
            )
            path = "<notebook>"
        else:
            ((path, segments),) = self._segments.items()
            text, line = "", 1
            for first in sorted(segments):
                text += "\n" * (first - line) + segments[first]
                line = first + segments[first].count("\n")
        preamble = "".join(f"{line}\n" for line in sorted(self._preamble))
        package = self._namespace.get("__package__") or ""
        if package:
            # Relative imports inside functions start from it.
            preamble += f"__package__ = {package!r}\n"
        if self._annotations_are_text:
            preamble = FUTURE_ANNOTATIONS + preamble
        names = [*imports_in(text, package), *imports_in(preamble, ""), *self._imported]
        modules = closure_of(names)
        rows = [[row.name, row.key] for row in modules]
        key = sha256(cbor2.dumps([path, text, preamble, rows])).digest()
        main = ModuleText("__main__", path, False, text, preamble, key)
        return [main, *modules]


def _travels(module: str) -> bool:
    return is_on_devices(module) or user_file(module) is not None


def _import_as(module: str, name: str) -> str:
    return f"import {module}" if module == name else f"import {module} as {name}"


def _import_by_name(name: str, value: Any) -> str | None:
    """An import that gives a class or function its name here, by its own module and name."""
    if not isinstance(value, type | FunctionType | BuiltinFunctionType):
        return None
    module, path = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    if type(module) is not str or module not in sys.modules or not path or not _travels(module):
        return None
    try:
        if attribute_of(sys.modules[module], path) is not value:
            return None
    except AttributeError:
        return None
    first, _, rest = path.partition(".")
    statement = f"from {module} import {first} as {name}"
    return f"{statement}; {name} = {name}.{rest}" if rest else statement


def _written(value: Any) -> str:
    """A constant as an expression."""
    if type(value) is re.Pattern:
        return f"__import__('re').compile({value.pattern!r}, {value.flags})"
    if type(value) is tuple:
        return f"({''.join(_written(item) + ', ' for item in value)})"
    if type(value) is frozenset:
        return f"frozenset(({''.join(item + ', ' for item in sorted(map(_written, value)))}))"
    if type(value) is float:
        return f"float({str(value)!r})"
    if type(value) is complex:
        return f"complex(float({str(value.real)!r}), float({str(value.imag)!r}))"
    return repr(value)


def _why_no_constant(name: str, value: Any) -> str:
    kind = type(value).__qualname__
    if isinstance(value, type):
        return f"its global {name} is a class of {value.__module__}"
    return f"its global {name} is a {kind}, which is neither a constant nor an import"


def _chains(node: ast.AST, name: str) -> list[list[str]]:
    """The attributes that a text reads from a name: `a.b.c` gives [b, c]."""
    found = []
    for item in ast.walk(node):
        chain: list[str] = []
        while isinstance(item, ast.Attribute):
            chain.insert(0, item.attr)
            item = item.value
        if chain and isinstance(item, ast.Name) and item.id == name:
            found.append(chain)
    return found


def _check_defaults(
    function: FunctionType, node: ast.FunctionDef | ast.AsyncFunctionDef, names: dict[str, Any]
) -> None:
    """What the text gives a parameter as default must be what it has."""
    pairs: list[tuple[ast.expr, Any]] = list(
        zip(node.args.defaults, function.__defaults__ or (), strict=False)
    )
    by_name = function.__kwdefaults__ or {}
    for argument, expression in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        if expression is not None:
            pairs.append((expression, by_name.get(argument.arg)))
    if len(node.args.defaults) != len(function.__defaults__ or ()):
        raise NotSource(f"the defaults of {function.__name__} have been changed")
    for expression, value in pairs:
        if not _gives(expression, value, names):
            raise NotSource(
                f"the default `{ast.unparse(expression)}` of {function.__name__} is no constant"
            )


def _gives(expression: ast.expr, value: Any, names: dict[str, Any]) -> bool:
    """Whether an expression of a literal, a name or an attribute is this unchanging value."""
    if isinstance(expression, ast.Name):
        return expression.id in names and names[expression.id] is value
    if isinstance(expression, ast.Attribute):
        try:
            path = ast.unparse(expression)
            root, _, rest = path.partition(".")
            return attribute_of(names[root], rest) is value
        except (AttributeError, KeyError):
            return False
    try:
        literal = ast.literal_eval(expression)
    except (ValueError, TypeError, SyntaxError):
        return False
    return is_constant(value) and type(literal) is type(value) and repr(literal) == repr(value)
