"""Train, validate, run and export YOLOv5 in this project. Start with `lab --help`."""
