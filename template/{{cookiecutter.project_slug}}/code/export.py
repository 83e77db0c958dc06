"""Write a checkpoint in another format: `python export.py --weights best.pt --include onnx`.

The same as `lab export`.
"""

import sys

from lab.cli import main

sys.exit(main(["export", *sys.argv[1:]]))
