"""The tables by which messages are encoded and decoded, made from the classes' annotations."""

from collections.abc import Callable
from typing import Any, get_args

from forage_wire.ignored import note_ignored
from forage_wire.kinds import Kind
from forage_wire.reading import BYTES, INTEGER, TEXT, Unusual
from forage_wire.records import NOTHING, columns_of

__all__ = ["Table", "table_of"]


class Table:
    """How one message class is written as a map, and read from one."""

    __slots__ = (
        "_by_key",
        "_by_key_bytes",
        "_required",
        "columns",
        "message_class",
        "values_of",
    )

    def __init__(self, message_class: type) -> None:
        self.message_class = message_class
        declared: Any = message_class
        columns = []
        self._by_key_bytes: dict[bytes, tuple[str, int, int, int, Any, Any]] | None = None
        for column in columns_of(message_class):
            _, key, kind = _parts_of(column.type)
            default = column.default
            if column.default_factory is not None:
                default = column.default_factory()
            columns.append((column.name, key, kind.decode, kind.encode, default))
        self.columns: tuple[tuple[str, str, Any, Any, Any], ...] = tuple(columns)
        # (It gives the value itself, and no tuple, where there is one field.)
        self.values_of: Callable[[Any], tuple[Any, ...]] = (
            declared.__record_values__
            if len(columns) > 1
            else lambda message: tuple([getattr(message, column[0]) for column in columns])
        )
        self._by_key = {key: (name, decode) for name, key, decode, _encode, _ in columns}
        self._required = {name: key for name, key, _, _, default in columns if default is NOTHING}
        if len(self._by_key) != len(columns):
            raise AssertionError(f"{message_class.__name__} uses a key twice")

    def encode_map(self, message: Any) -> dict[str, Any]:
        """The message as a map; fields that hold their default are left out."""
        found: dict[str, Any] = {}
        for (_name, key, _decode, encode, default), value in zip(
            self.columns, self.values_of(message), strict=True
        ):
            if value is default or (default is not NOTHING and value == default):
                continue
            found[key] = value if encode is None else encode(value)
        return found

    def read(self, data: bytes, at: int) -> tuple[Any, int]:
        """The message whose map begins at `at`, the short way (`forage_wire.reading`), and its end.

        Whatever it raises, it is to be read the long way then.
        """
        return self.read_fields(data, at + 1, data[at] - 0xA0)

    def read_fields(self, data: bytes, at: int, count: int) -> tuple[Any, int]:
        """As `read`, of the `count` fields that begin at `at`."""
        if not 0 <= count < 24:
            raise Unusual
        values: dict[str, Any] = {}
        by_key = self._by_key_bytes
        if by_key is None:
            by_key = self._by_key_bytes = self._readers()
        for _ in range(count):
            end = at + data[at] - 0x5F
            name, shape, least, most, known, read = by_key[data[at:end]]
            head = data[end]
            if shape == INTEGER and head < 24:
                if not least <= head <= most:
                    raise Unusual
                values[name] = head
                at = end + 1
            elif shape == BYTES and 0x40 <= head < 0x58:
                if not least <= head - 0x40 <= most:
                    raise Unusual
                at = end + head - 0x3F
                values[name] = data[end + 1 : at]
            elif (
                shape == TEXT
                and 0x60 <= head < 0x78
                and (text := known.get(data[end + 1 : end + head - 0x5F])) is not None
            ):
                at = end + head - 0x5F
                values[name] = text
            else:
                values[name], at = read(data, end)
        if len(values) != count:
            raise Unusual
        # (A TypeError where one is missing that must not be.)
        return self.message_class(**values), at

    def _readers(self) -> dict[bytes, tuple[str, int, int, int, Any, Any]]:
        """By their keys as they stand on the wire; made when first used, as few tables are."""
        found = {}
        for column in columns_of(self.message_class):
            _, key, kind = _parts_of(column.type)
            on_wire = bytes((0x60 + len(key),)) + key.encode()
            found[on_wire] = (column.name, *kind.shape, kind.known, kind.reader)
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
