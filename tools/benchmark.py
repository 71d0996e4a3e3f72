"""`dd3g benchmark` from a clone: `python -m tools.benchmark infer`."""

import sys

from dd3g.benchmark.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
