"""Train a model: `python train.py --img 640 --batch 64 --epochs 10 --data custom.yaml --weights yolov5s.pt`.

The same as `lab train`.
"""

import sys

from lab.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
