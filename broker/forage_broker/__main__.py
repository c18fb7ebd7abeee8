"""`python -m forage_broker` is `forage broker`, without the terminal's libraries."""

import sys

from forage_broker.main import main

sys.exit(main())
