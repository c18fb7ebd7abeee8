"""The fields of the wire's classes, read from their annotations."""

from dataclasses import dataclass
from typing import get_args

from forage_wire import records
from forage_wire.kinds import Kind

__all__ = ["Column", "columns_of"]


@dataclass(frozen=True, slots=True)
class Column:
    """One field of a message class."""

    name: str
    key: str
    kind: Kind
    required: bool


def columns_of(message_class: type) -> list[Column]:
    """The fields of a message class, in order."""
    found = []
    for column in records.columns_of(message_class):
        _type, key, kind = get_args(column.type)
        found.append(Column(column.name, key, kind, column.is_required))
    return found
