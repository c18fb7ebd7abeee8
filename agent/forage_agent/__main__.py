"""`python -m forage_agent` is `forage agent`."""

import sys

from forage_agent.main import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
