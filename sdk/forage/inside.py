"""What a function may use while it runs on a device."""

__all__ = ["progress"]


def progress(fraction: float, text: str = "") -> None:
    """Say how far the running call is; outside of a task nothing happens.

    Args:
        fraction: 0 to 1.
        text: At most 256 characters; more is cut.
    """
    raise NotImplementedError
