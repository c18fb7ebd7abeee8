"""Sessions: which of two of one name is the newer, or another process altogether."""

__all__ = ["counter_of", "is_newer", "start_of"]


def start_of(session: str) -> str:
    """What all sessions of one process start have in common."""
    return session[:16]


def counter_of(session: str) -> int:
    """How often that process has connected."""
    return int(session[17:])


def is_newer(session: str, than: str) -> bool:
    """Whether `session` is a later connection of the same start as `than`."""
    return start_of(session) == start_of(than) and counter_of(session) > counter_of(than)
