"""The agent: makes a machine a device of the bus.

`core` decides and touches nothing; `shell` touches and decides nothing; `config` and `main` wire.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
