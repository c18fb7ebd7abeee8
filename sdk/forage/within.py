"""What can be called within a task: `forage.progress`.

Loads next to nothing, for it is imported in the workers of small devices.
"""

from forage_wire.running import PROGRESS_TEXT_MAX, reporter

__all__ = ["progress"]


def progress(fraction: float, text: str = "") -> None:
    """Tell how far the running call is: `future.progress`, `forage run` and others show it.

    Costs microseconds, never waits, and may be called as often as you like: the latest word
    leaves the device about twice a second. Outside of a task it does nothing, so the same
    function runs anywhere.

    Args:
        fraction: 0 to 1; what lies outside counts as the nearer end.
        text: For people, such as "resizing"; cut after 256 characters.

    Raises:
        TypeError: `fraction` is no number, or `text` no text.
        ValueError: `fraction` is not a number (NaN).
    """
    share = float(fraction)
    if share != share:
        raise ValueError("The progress is NaN; give a number from 0 to 1.")
    if not isinstance(text, str):
        raise TypeError(f"The text of a progress is a str, not {type(text).__name__}.")
    report = reporter()
    if report is not None:
        report(round(1_000 * min(1.0, max(0.0, share))), text[:PROGRESS_TEXT_MAX])
