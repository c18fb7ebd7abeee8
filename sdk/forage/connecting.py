"""`connect`: from an address (or none) to a `Client` that a controller has welcomed."""

from forage.client import Client

__all__ = ["connect"]


def connect(
    broker: str | None = None,
    *,
    root: str | None = None,
    user: str | None = None,
    insecure: bool = False,
    timeout_s: float = 5,
) -> Client:
    """Connect to a fleet.

    Args:
        broker: `mqtt://host:1883` or `mqtts://user:password@host:8883`; None: the variable
            FORAGE_BROKER, then ./forage.toml, the user's and the system's configuration, then
            this machine.
        root: First topic segment; None: FORAGE_ROOT, configuration, then `forage`.
        user: On whose behalf; None: the broker login, or the OS user.
        insecure: Allow a broker elsewhere that asks for no credentials.
        timeout_s: How long a controller may take to answer.

    Raises:
        NotConnected: No broker there, or no controller behind it.
        Refused: The broker refuses the login; or this is a task, which must not connect.
        ValueError: The address or another setting is wrong.
    """
    raise NotImplementedError
