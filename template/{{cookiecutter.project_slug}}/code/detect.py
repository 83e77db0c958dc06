"""Draw boxes on pictures or videos: `python detect.py --weights best.pt --source pictures/`.

The same as `lab detect`.
"""

import sys

from lab.cli import main

sys.exit(main(["detect", *sys.argv[1:]]))
