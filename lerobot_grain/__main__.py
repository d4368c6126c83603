"""`python -m lerobot_grain` is the command line `lerobot-grain`, for a Python whose scripts are not
on the path.
"""

import sys

from lerobot_grain._cli.main import main

if __name__ == "__main__":
    sys.exit(main())
