"""Texts that can be written down: Python's may hold half of a surrogate pair, UTF-8 may not."""

__all__ = ["check_text", "writable"]


def check_text(text: str, what: str) -> str:
    """The text itself.

    Args:
        text: As a user gave it.
        what: It, as the beginning of a sentence.

    Raises:
        ValueError: One sentence: UTF-8 cannot hold it.
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            # Not with `!r` of the whole: it might be a password.
            raise ValueError(
                f"{what} has the character U+{ord(text[error.start]):04X}, half of a pair that "
                "stands for nothing alone and that UTF-8 cannot hold; write it without (it often "
                "comes from bytes that are not UTF-8)."
            ) from None
    return text


def writable(text: str) -> str:
    """The text, with an escape such as `\\ud800` for each character that UTF-8 cannot hold."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()
