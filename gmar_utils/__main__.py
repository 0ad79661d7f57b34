"""`python -m gmar_utils` is `gmar`."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
