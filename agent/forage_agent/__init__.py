"""The agent: makes a machine a device of the bus.

`core` decides and touches nothing; `shell` touches and decides nothing; `config` and `main` wire.
"""

from forage_wire.version import __version__

__all__ = ["__version__"]
