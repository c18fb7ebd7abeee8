"""What can be called within a task: `forage.progress`, `forage.checkpoint`, `forage.restore`.

Loads next to nothing, for it is imported in the workers of small devices.
"""

from typing import Any

from forage_wire.running import PROGRESS_TEXT_MAX, checkpoints, reporter

__all__ = ["checkpoint", "progress", "restore"]


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


def checkpoint(state: Any) -> None:
    """Keep the running call's state, for `restore` to find if the call has to be run again.

        def total(numbers):
            at, found = forage.restore(default=(0, 0))
            while at < len(numbers):
                found += numbers[at]
                at += 1
                if at % 1_000 == 0:
                    forage.checkpoint((at, found))
            return found

    The state is taken as it is now and goes to the controller by itself, which keeps the last one
    of each call until the call has ended, also over its own restart. The device sends one at a
    time, and of those that come meanwhile the newest; so what is done twice after a loss is at most
    what was done since the last state that had arrived. Outside of a task it does nothing.

    Args:
        state: What a result can be, up to 16 MiB of it.

    Raises:
        NotSerializable: It cannot travel, or is too large. The checkpoint before it stays.
        RuntimeError: Called by another thread or process than the one that runs the call.
    """
    found = checkpoints()
    if found is not None:
        found.keep(state)


def restore(default: Any = None) -> Any:
    """The state to go on from: the call's last checkpoint that the controller had.

    That is there where an earlier attempt of this very call has made one: before its device was
    lost, its worker died, it ran out of time or raised an error that is tried again. It is the
    same whenever it is asked for within one attempt. Calls that are not run again
    (`at_most_once`) never have one.

    Args:
        default: The answer where there is none, and outside of a task. Where a state may be None
            itself, another default tells the two apart.

    Raises:
        VersionMismatch: The state holds code of another Python version than this device has.
        DecodeError: The state cannot be read here, such as for want of a module.
        RuntimeError: Called by another thread or process than the one that runs the call.
    """
    found = checkpoints()
    kept = None if found is None else found.kept()
    return default if kept is None else kept[0]
