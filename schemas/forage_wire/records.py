"""Dataclasses that cost little to declare and little to make.

The standard library writes and compiles four methods for each class while it is imported, a third
of a millisecond and more; the protocol has a hundred classes, of which a program makes a few dozen.
Here a class's `__init__` is compiled when its first object is made, and the other methods are
shared by all classes. For the type checker they are the standard library's own, and its functions
(`fields`, `asdict`, `replace`) take them: what those look for is made when they first ask.

`dataclass` is for what is made for every message: frozen for the type checker alone, since the
guard at run time makes an object cost three times as much. `guarded_dataclass` has the guard: it
is for what users get to see.
"""

from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

__all__ = ["NOTHING", "columns_of", "dataclass", "field", "guarded_dataclass", "replace"]

NOTHING: Any = object()
"""The default of a field that has none."""


class _Field:
    """A field of which more is to be said than its default."""

    __slots__ = ("default", "default_factory", "repr")

    def __init__(
        self,
        *,
        default: Any = NOTHING,
        default_factory: Callable[[], Any] | None = None,
        repr: bool = True,
    ) -> None:
        self.default = default
        self.default_factory = default_factory
        self.repr = repr


class _Column:
    """One field as a class, or one that it inherits from, declares it."""

    __slots__ = ("default", "default_factory", "is_keyword", "is_shown", "name", "type")

    def __init__(self, name: str, type: Any, declared: Any, is_keyword: bool) -> None:
        said = declared if isinstance(declared, _Field) else _Field(default=declared)
        self.name = name
        self.type = type
        self.default = said.default
        self.default_factory = said.default_factory
        self.is_shown = said.repr
        self.is_keyword = is_keyword

    @property
    def is_required(self) -> bool:
        return self.default is NOTHING and self.default_factory is None


# -- methods that all records share -------------------------------------------------------------


def _equal(self: Any, other: Any) -> Any:
    if other.__class__ is not self.__class__:
        return NotImplemented
    values = self.__record_values__
    return values(self) == values(other)


def _hash(self: Any) -> int:
    return hash(self.__record_values__(self))


def _text(self: Any) -> str:
    shown = [
        f"{column.name}={getattr(self, column.name)!r}"
        for column in self.__record_columns__
        if column.is_shown
    ]
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _refuse_to_set(_record: Any, name: str, _value: object) -> None:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_to_delete(_record: Any, name: str) -> None:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot delete field {name!r}")


def _state(self: Any) -> list[Any]:
    return [getattr(self, column.name) for column in self.__record_columns__]


def _restore(self: Any, state: list[Any]) -> None:
    for column, value in zip(self.__record_columns__, state, strict=True):
        object.__setattr__(self, column.name, value)


def _no_values(_record: Any) -> tuple[()]:
    return ()


# -- what is made when it is first needed -------------------------------------------------------


def _compile_init(made: type, is_guarded: bool) -> Callable[..., None]:
    known: dict[str, Any] = {"NOTHING": NOTHING, "set_field": object.__setattr__}
    parameters: dict[bool, list[str]] = {False: ["self"], True: []}
    body: list[str] = []
    for column in columns_of(made):
        name = value = column.name
        default = ""
        if column.default_factory is not None:
            known[f"make_{name}"] = column.default_factory
            default = "=NOTHING"
            value = f"make_{name}() if {name} is NOTHING else {name}"
        elif column.default is not NOTHING:
            known[f"default_{name}"] = column.default
            default = f"=default_{name}"
        parameters[column.is_keyword].append(name + default)
        body.append(f"set_field(self, {name!r}, {value})" if is_guarded else f"self.{name}={value}")
    taken = parameters[False] + (["*", *parameters[True]] if parameters[True] else [])
    text = f"def __init__({', '.join(taken)}):\n {'; '.join(body) or 'pass'}"
    exec(text, known)  # As the standard library makes its own.
    init: Callable[..., None] = known["__init__"]
    init.__qualname__ = f"{made.__qualname__}.__init__"
    init.__module__ = made.__module__
    return init


def _first_init(made: type, is_guarded: bool) -> Callable[..., None]:
    """An `__init__` that compiles the real one and leaves its place to it."""

    def __init__(self: Any, /, *values: Any, **named: Any) -> None:
        init = _compile_init(made, is_guarded)
        made.__init__ = init  # type: ignore[misc]
        init(self, *values, **named)

    return __init__


class _StandardFields:
    """A record's `__dataclass_fields__`, made when somebody first looks."""

    __slots__ = ("_made",)

    def __init__(self, made: type) -> None:
        self._made = made

    def __get__(self, record: object, record_class: type) -> dict[str, Any]:
        import dataclasses

        rows = []
        for column in columns_of(self._made):
            options: dict[str, Any] = {"repr": column.is_shown, "kw_only": column.is_keyword}
            if column.default_factory is not None:
                options["default_factory"] = column.default_factory
            elif column.default is not NOTHING:
                options["default"] = column.default
            rows.append((column.name, column.type, dataclasses.field(**options)))
        standard: Any = dataclasses.make_dataclass(self._made.__name__, rows)
        found: dict[str, Any] = standard.__dataclass_fields__
        self._made.__dataclass_fields__ = found  # type: ignore[attr-defined]
        return found


# -- the decorators -----------------------------------------------------------------------------


def columns_of(record_class: type) -> tuple[_Column, ...]:
    """The fields of a record: `name`, `type`, `is_required`, and `default` or `default_factory`."""
    found: tuple[_Column, ...] = record_class.__record_columns__  # type: ignore[attr-defined]
    return found


def _replace(record: Any, /, **changes: Any) -> Any:
    """As the standard library's."""
    for column in columns_of(type(record)):
        if column.name not in changes:
            changes[column.name] = getattr(record, column.name)
    return type(record)(**changes)


def _columns(declared: type, kw_only: bool) -> tuple[_Column, ...]:
    found: dict[str, _Column] = {}
    for base in reversed(declared.__mro__[1:]):
        found.update((column.name, column) for column in vars(base).get("__record_columns__", ()))
    for name, annotation in declared.__annotations__.items():
        default = vars(declared).get(name, NOTHING)
        found[name] = _Column(name, annotation, default, kw_only)
    return tuple(found.values())


def _methods(*, is_frozen: bool, is_guarded: bool, eq: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"__repr__": _text}
    if eq:
        found |= {"__eq__": _equal, "__hash__": _hash if is_frozen else None}
    if is_guarded:
        found |= {"__setattr__": _refuse_to_set, "__delattr__": _refuse_to_delete}
        found |= {"__getstate__": _state, "__setstate__": _restore}
    return found


def _record(declared: type, methods: dict[str, Any], *, kw_only: bool, is_guarded: bool) -> type:
    """The class anew, with slots, which can only be given to it while it is made."""
    columns = _columns(declared, kw_only)
    own = list(declared.__annotations__)
    inherited = {name for base in declared.__mro__ for name in vars(base).get("__slots__", ())}
    written = vars(declared)
    namespace = {
        name: value
        for name, value in written.items()
        if name not in own and name not in ("__dict__", "__weakref__")
    }
    # What a class writes itself stays (one that writes `__eq__` has a `__hash__` of None).
    namespace |= {name: each for name, each in methods.items() if written.get(name) is None}
    names = [column.name for column in columns]
    namespace |= {
        "__slots__": tuple(name for name in own if name not in inherited),
        "__match_args__": tuple(column.name for column in columns if not column.is_keyword),
        "__record_columns__": columns,
        # This reads all of them at once, in C.
        "__record_values__": attrgetter(*names) if names else staticmethod(_no_values),
    }
    made: Any = type(declared)(declared.__name__, declared.__bases__, namespace)
    made.__qualname__ = declared.__qualname__
    made.__init__ = _first_init(made, is_guarded)
    made.__dataclass_fields__ = _StandardFields(made)
    return made  # type: ignore[no-any-return]


def _decorator(is_guarded: bool) -> Callable[..., Any]:
    def decorate(
        *, slots: bool = False, frozen: bool = False, kw_only: bool = False, eq: bool = True
    ) -> Callable[[type], type]:
        if not slots or (is_guarded and not frozen):
            raise TypeError("a record has slots=True, and a guarded one frozen=True")
        methods = _methods(is_frozen=frozen, is_guarded=is_guarded, eq=eq)
        return lambda declared: _record(declared, methods, kw_only=kw_only, is_guarded=is_guarded)

    return decorate


if TYPE_CHECKING:
    from dataclasses import dataclass, field, replace
    from dataclasses import dataclass as guarded_dataclass
else:
    dataclass = _decorator(is_guarded=False)
    guarded_dataclass = _decorator(is_guarded=True)
    field = _Field
    replace = _replace
