"""Hypothesis strategies for everything on the wire, made from the messages' own tables.

`instances(Class)` builds valid messages, headers and documents; `raw_of(kind)` what a kind
accepts, as a decoder finds it, and `wrong_for(kind)` what it must refuse.
"""

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from forage_wire import messages
from forage_wire.kinds import Kind
from forage_wire.messages import CBOR_MESSAGES, JSON_DOCUMENTS
from wire.fields import columns_of

__all__ = [
    "DOCUMENT_CLASSES",
    "MESSAGE_CLASSES",
    "PART_CLASSES",
    "instances",
    "range_lists",
    "raw_maps",
    "raw_of",
    "wrong_for",
]

MESSAGE_CLASSES = list(CBOR_MESSAGES.values())
PART_CLASSES: list[type] = [
    messages.Options,
    messages.Header,
    messages.Page,
    messages.Assignment,
    messages.OutcomeSet,
]
DOCUMENT_CLASSES = list(JSON_DOCUMENTS.values())

_ITEMS = 4
"""Lists are kept this short: what a list's length does is tested once, not in every message."""


def instances(message_class: type) -> st.SearchStrategy[Any]:
    """Valid instances of a message, part or document class."""
    required: dict[str, st.SearchStrategy[Any]] = {}
    optional: dict[str, st.SearchStrategy[Any]] = {}
    for column in columns_of(message_class):
        values = raw_of(column.kind).map(column.kind.decode)
        (required if column.required else optional)[column.name] = values
    fields = st.fixed_dictionaries(required, optional=optional)
    return fields.map(lambda found: message_class(**found))


@st.composite
def range_lists(draw: st.DrawFn, end: int = 2**32) -> list[list[int]]:
    """Sorted, disjoint ranges below `end`."""
    edges = draw(st.lists(st.integers(0, end), max_size=2 * _ITEMS, unique=True))
    edges = sorted(edges[: len(edges) // 2 * 2])
    return [list(pair) for pair in zip(edges[::2], edges[1::2], strict=True)]


def _texts(maximum: int) -> st.SearchStrategy[str]:
    return st.text(max_size=min(maximum, 12))


def _unsigned(maximum: int, minimum: int) -> st.SearchStrategy[int]:
    return st.sampled_from([minimum, maximum]) | st.integers(minimum, maximum)


def _data(maximum: int, sizes: tuple[int, ...]) -> st.SearchStrategy[bytes]:
    if not sizes:
        return st.binary(max_size=min(maximum, 40))
    return st.sampled_from(sizes).flatmap(lambda size: st.binary(min_size=size, max_size=size))


def _pattern(expression: str, empty: bool) -> st.SearchStrategy[str]:
    texts = st.from_regex(expression, fullmatch=True)
    return texts | st.just("") if empty else texts


def _text_map(maximum: int, value: Kind) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(_texts(64), raw_of(value), max_size=min(maximum, _ITEMS))


_NAMED = st.tuples(st.text(min_size=1, max_size=12), _texts(32)).map(list)

_RAW: dict[str, Callable[..., st.SearchStrategy[Any]]] = {
    "unsigned": _unsigned,
    "number": lambda: st.integers(-(10**6), 10**6) | st.floats(-1e9, 1e9, width=32),
    "boolean": lambda: st.booleans(),
    "text": _texts,
    "pattern": _pattern,
    "one_of": lambda *choices: st.sampled_from(choices),
    "data": _data,
    "nullable": lambda kind: st.none() | raw_of(kind),
    "list_of": lambda kind, maximum: st.lists(raw_of(kind), max_size=min(maximum, _ITEMS)),
    "row": lambda *kinds: st.tuples(*map(raw_of, kinds)).map(list),
    "ranges": lambda maximum: range_lists(),
    "text_map": _text_map,
    "name_or_version": lambda: st.binary(min_size=32, max_size=32) | _NAMED,
    "record": lambda record: raw_maps(record),
}


def raw_of(kind: Kind) -> st.SearchStrategy[Any]:
    """What a kind accepts, as a decoder finds it on the wire."""
    return _RAW[kind.name](*kind.bounds)


def raw_maps(record: type) -> st.SearchStrategy[dict[str, Any]]:
    """Maps that hold a valid record."""
    required = {column.key: raw_of(column.kind) for column in columns_of(record) if column.required}
    optional = {
        column.key: raw_of(column.kind) for column in columns_of(record) if not column.required
    }
    return st.fixed_dictionaries(required, optional=optional)


# -- what must be refused -------------------------------------------------------------------------

Mistakes = list[st.SearchStrategy[Any]]

_INTEGERS = st.integers(-(2**63), 2**64 - 1)
_OF_TYPE: dict[type, st.SearchStrategy[Any]] = {
    int: _INTEGERS,
    bool: st.booleans(),
    str: st.text(max_size=8),
    bytes: st.binary(max_size=8),
    list: st.lists(_INTEGERS, max_size=3),
    dict: st.dictionaries(st.text(max_size=3), _INTEGERS, max_size=3),
    type(None): st.none(),
}
_TYPES_TAKEN: dict[str, tuple[type, ...]] = {
    "unsigned": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "text": (str,),
    "pattern": (str,),
    "one_of": (str,),
    "data": (bytes,),
    "list_of": (list,),
    "row": (list,),
    "ranges": (list,),
    "text_map": (dict,),
    "name_or_version": (bytes, list),
    "record": (dict,),
}


def _wrong_data(maximum: int, sizes: tuple[int, ...]) -> Mistakes:
    if sizes:
        lengths = [length for size in sizes for length in (size - 1, size + 1) if length >= 0]
        return [st.just(b"x" * length) for length in lengths]
    # A string above the limit is large: only where the limit is small is it worth making.
    return [st.just(b"x" * (maximum + 1))] if maximum <= 65_536 else []


def _in_place(
    right: st.SearchStrategy[Any], mistake: st.SearchStrategy[Any], place: int | str
) -> st.SearchStrategy[Any]:
    """A right list or map, but for one place."""

    def put(pair: tuple[Any, Any]) -> Any:
        found = pair[0].copy()
        found[place] = pair[1]
        return found

    return st.tuples(right, mistake).map(put)


def _without(right: st.SearchStrategy[dict[str, Any]], gone: str) -> st.SearchStrategy[Any]:
    return right.map(lambda raw: {key: value for key, value in raw.items() if key != gone})


def _wrong_row(*kinds: Kind) -> Mistakes:
    right = _RAW["row"](*kinds)
    found: Mistakes = [right.map(lambda row: row[:-1]), right.map(lambda row: [*row, 0])]
    for place, kind in enumerate(kinds):
        for mistake in wrong_for(kind):
            found.append(_in_place(right, mistake, place))
    return found


def _wrong_record(record: type) -> Mistakes:
    found: Mistakes = []
    right = raw_maps(record)
    for column in columns_of(record):
        if column.required:
            found.append(_without(right, column.key))
        for mistake in wrong_for(column.kind):
            found.append(_in_place(right, mistake, column.key))
    return found


def _wrong_list(kind: Kind, maximum: int) -> Mistakes:
    right = raw_of(kind)
    return [st.tuples(right, mistake).map(list) for mistake in wrong_for(kind)]


def _wrong_text_map(maximum: int, value: Kind) -> Mistakes:
    keys = _texts(64)
    long_key = st.dictionaries(st.just("x" * 65), raw_of(value), min_size=1)
    return [
        long_key,
        *[st.dictionaries(keys, mistake, min_size=1, max_size=2) for mistake in wrong_for(value)],
    ]


_NOT_RANGES = [[[0]], [[0, 1, 2]], [[-1, 2]], [["a", 2]], [[0, 2**32 + 1]], [[0, 0]], [3]]
_NOT_FUNCTIONS = [b"x" * 31, b"x" * 33, [], ["", "1"], ["a"], ["a", 1], ["a", "1", "2"]]

_WRONG: dict[str, Callable[..., Mistakes]] = {
    "unsigned": lambda maximum, minimum: [st.just(minimum - 1), st.just(maximum + 1)],
    "text": lambda maximum: [st.just("x" * (maximum + 1)), st.just("é" * (maximum + 1))],
    "pattern": lambda expression, empty: [st.sampled_from(["!", "A\n", "x" * 60])],
    "one_of": lambda *choices: [st.sampled_from(["", choices[0] + " ", "other"])],
    "data": _wrong_data,
    "list_of": _wrong_list,
    "row": _wrong_row,
    "ranges": lambda maximum: list(map(st.just, _NOT_RANGES)),
    "text_map": _wrong_text_map,
    "name_or_version": lambda: list(map(st.just, _NOT_FUNCTIONS)),
    "record": _wrong_record,
}


def wrong_for(kind: Kind) -> Mistakes:
    """What a kind must refuse, one strategy for each way to be wrong.

    Another type, out of bounds on either side, or wrong in one place inside. Only mistakes that
    CDDL can name: that ranges are sorted and disjoint it cannot.
    """
    if kind.name == "nullable":
        inner = wrong_for(kind.bounds[0])
        return [mistake.filter(lambda raw: raw is not None) for mistake in inner]
    taken = _TYPES_TAKEN[kind.name]
    other = st.one_of([values for of_type, values in _OF_TYPE.items() if of_type not in taken])
    specific = _WRONG[kind.name](*kind.bounds) if kind.name in _WRONG else []
    return [other, *specific]
