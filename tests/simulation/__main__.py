"""``python -m tests.simulation``; what other processes import cannot live here."""

import sys

from .explore import main

if __name__ == "__main__":
    sys.exit(main())
