"""``python -m genlab``, which is what ``accelerate launch -m genlab ...`` runs."""

import sys

from genlab.cli import main

if __name__ == "__main__":
    sys.exit(main())
