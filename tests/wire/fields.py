"""The fields of the wire's classes, read from their annotations."""

import dataclasses
from typing import get_args

from forage_wire.kinds import Kind
from forage_wire.table import annotations_of

__all__ = ["Column", "columns_of"]


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """One field of a message class."""

    name: str
    key: str
    kind: Kind
    required: bool


def columns_of(message_class: type) -> list[Column]:
    """The fields of a message class, in order."""
    annotations = annotations_of(message_class)
    found = []
    for field in dataclasses.fields(message_class):
        _type, key, kind = get_args(annotations[field.name])
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        found.append(Column(field.name, key, kind, required))
    return found
