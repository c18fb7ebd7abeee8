"""The version of all five packages: they are one distribution, and are built from this line.

(Asking the installed metadata instead would cost every start of a service 50 ms.)
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
