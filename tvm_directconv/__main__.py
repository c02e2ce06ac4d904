"""``python -m tvm_directconv``: the same as the command ``tvm-directconv``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
