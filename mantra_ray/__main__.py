"""`python -m mantra_ray`: the command `mantra`."""

import sys

from mantra_ray.cli import main

if __name__ == "__main__":
    sys.exit(main())
