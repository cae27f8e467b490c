"""`python -m studies.cli` where the command is not installed."""

import sys

from studies.cli import main

if __name__ == "__main__":
    sys.exit(main())
