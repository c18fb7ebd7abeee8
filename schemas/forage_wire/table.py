"""The tables by which messages are encoded and decoded, made from the classes' annotations."""

from typing import Any, get_args

from forage_wire.ignored import note_ignored
from forage_wire.kinds import Kind
from forage_wire.records import NOTHING, columns_of

__all__ = ["Table", "table_of"]


class Table:
    """How one message class is written as a map, and read from one."""

    __slots__ = ("_by_key", "_required", "columns", "message_class")

    def __init__(self, message_class: type) -> None:
        self.message_class = message_class
        columns = []
        for column in columns_of(message_class):
            _, key, kind = _parts_of(column.type)
            default = column.default
            if column.default_factory is not None:
                default = column.default_factory()
            columns.append((column.name, key, kind.decode, kind.encode, default))
        self.columns: tuple[tuple[str, str, Any, Any, Any], ...] = tuple(columns)
        self._by_key = {key: (name, decode) for name, key, decode, _encode, _ in columns}
        self._required = {name: key for name, key, _, _, default in columns if default is NOTHING}
        if len(self._by_key) != len(columns):
            raise AssertionError(f"{message_class.__name__} uses a key twice")

    def encode_map(self, message: Any) -> dict[str, Any]:
        """The message as a map; fields that hold their default are left out."""
        found: dict[str, Any] = {}
        for name, key, _decode, encode, default in self.columns:
            value = getattr(message, name)
            if value is default or (default is not NOTHING and value == default):
                continue
            found[key] = value if encode is None else encode(value)
        return found

    def decode_map(self, raw: Any) -> Any:
        """A checked message from a map; unknown keys are ignored and noted (`forage_wire.ignored`).

        Raises ValueError, with the key and what is wrong with it.
        """
        if type(raw) is not dict:
            raise ValueError("not a map")
        values: dict[str, Any] = {}
        by_key = self._by_key
        for key, item in raw.items():
            column = by_key.get(key)
            if column is None:
                # (Every message of CBOR has its type under "t", which is no field.)
                if key != "t":
                    note_ignored(self.message_class.__name__, str(key))
                continue
            try:
                values[column[0]] = column[1](item)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from None
        for name in self._required:
            if name not in values:
                missing = [key for name, key in self._required.items() if name not in values]
                raise ValueError(f"{', '.join(missing)}: missing")
        return self.message_class(**values)


def _parts_of(annotation: Any) -> tuple[Any, str, Kind]:
    """(type, key, kind) of an `Annotated[type, key, kind]`."""
    found = get_args(annotation)
    if len(found) != 3:
        raise AssertionError(f"{annotation} is not Annotated[type, key, kind]")
    return found[0], found[1], found[2]


_tables: dict[type, Table] = {}


def table_of(message_class: type) -> Table:
    """The table of a message class, made once."""
    table = _tables.get(message_class)
    if table is None:
        table = _tables[message_class] = Table(message_class)
    return table
