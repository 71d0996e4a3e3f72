"""`dd3g data render` from a clone: `python tools/render_objects.py FOLDER --output RENDERS`."""

import sys

from data_gen.render import main

if __name__ == "__main__":
    sys.exit(main())
