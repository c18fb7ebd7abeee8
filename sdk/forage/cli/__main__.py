"""`python -m forage.cli`: the command `forage` where it is not on the path."""

import sys

from forage.cli import main

if __name__ == "__main__":
    sys.exit(main())
