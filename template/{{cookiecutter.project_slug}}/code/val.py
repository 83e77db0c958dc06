"""Measure a checkpoint on a data set: `python val.py --weights best.pt --data custom.yaml`.

The same as `lab val`.
"""

import sys

from lab.cli import main

sys.exit(main(["val", *sys.argv[1:]]))
