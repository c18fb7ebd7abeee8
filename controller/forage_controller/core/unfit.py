"""Calls that can never be given to any device end here, in words."""

from forage_controller.core.backlog import Pending
from forage_controller.core.settlement import Settlement
from forage_wire.system_errors import NO_DEVICE, REFUSED

__all__ = ["end_unfit"]


def end_unfit(settlement: Settlement, pending: Pending, reason: str, why: str, now_ms: int) -> None:
    """End calls that no device can ever be given."""
    ranges = ((pending.low, pending.high),)
    if reason == "no-device":
        text = f"no device can take this call: {why}"
        settlement.make_outcomes(pending.task, ranges, reason, NO_DEVICE, text, now_ms)
        return
    text = f"the controller cannot cut this task's calls: {why}"
    settlement.make_outcomes(pending.task, ranges, reason, REFUSED, text, now_ms)
