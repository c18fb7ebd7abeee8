"""`python -m forage_controller`."""

import sys

from forage_controller.main import main

sys.exit(main())
