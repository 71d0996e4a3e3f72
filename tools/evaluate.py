"""`dd3g evaluate` from a clone: `python -m tools.evaluate OBJECTS --generator nano -o out/evaluation`."""

import sys

from distill.evaluation.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
