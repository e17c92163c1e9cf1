"""``python -m hyperspy_fusion.cli``, where its script is not on the path."""

import sys

from hyperspy_fusion.cli import main

if __name__ == "__main__":
    sys.exit(main())
