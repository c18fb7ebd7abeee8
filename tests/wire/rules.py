"""The text of `forage.cddl`, for tests that read the schema itself."""

import re
from pathlib import Path

import forage_wire

__all__ = ["SCHEMA", "rule_name", "rule_text"]

SCHEMA = Path(forage_wire.__file__).parent / "forage.cddl"


def rule_name(message_class: type) -> str:
    """The rule of a class: `FooBar` is `foo-bar`."""
    return re.sub(r"(?<!^)([A-Z])", r"-\1", message_class.__name__).lower()


def rule_text(rule: str) -> str:
    """What stands behind the rule's `=`, to the next rule or blank line; without its brackets."""
    found = re.search(rf"^{rule} = (.*?)(?=^\S+ = |^\n|\Z)", SCHEMA.read_text(), re.M | re.S)
    assert found is not None, f"no rule {rule}"
    text = found[1].strip()
    return text[1:-1] if text[0] in "{(" and text[-1] in "})" else text
