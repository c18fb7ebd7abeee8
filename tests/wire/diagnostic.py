"""CBOR data written as JSON, for vectors that any language can read."""

from typing import Any

__all__ = ["from_json", "to_json"]


def to_json(item: Any) -> Any:
    """CBOR data as JSON: a byte string is {"hex": ...}."""
    if isinstance(item, bytes):
        return {"hex": item.hex()}
    if isinstance(item, list):
        return [to_json(inner) for inner in item]
    if isinstance(item, dict):
        return {key: to_json(inner) for key, inner in item.items()}
    return item


def from_json(item: Any) -> Any:
    """The CBOR data that `to_json` wrote."""
    if isinstance(item, list):
        return [from_json(inner) for inner in item]
    if isinstance(item, dict):
        if item.keys() == {"hex"}:
            return bytes.fromhex(item["hex"])
        return {key: from_json(inner) for key, inner in item.items()}
    return item
