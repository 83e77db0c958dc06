"""A model made by hand for tests of what is around a model: it finds red squares, and was never trained.

    python made_onnx.py FILE.onnx [--fixed] [--anchors]

The input is SIZE x SIZE pixels, cut into cells of CELL; a cell's scores are its redness and blueness, its box is the
cell. The batch is free unless --fixed. The output is laid out as yolov5u's, or with --anchors as yolov5's.
"""

from __future__ import annotations

import argparse

import numpy as np

SIZE, CELL = 128, 32
NAMES = {0: "red", 1: "blue"}


def cells() -> np.ndarray:
    """Centre, width and height of every cell, 4 x cells."""
    middles = np.arange(CELL / 2, SIZE, CELL, dtype=np.float32)
    x, y = np.meshgrid(middles, middles)
    return np.stack([x.ravel(), y.ravel(), np.full(x.size, CELL), np.full(x.size, CELL)]).astype(np.float32)


def run(images: np.ndarray) -> np.ndarray:
    """What the file computes for N x 3 x SIZE x SIZE, in numpy: N x (4 + classes) x cells."""
    count = SIZE // CELL
    means = images.reshape(len(images), 3, count, CELL, count, CELL).mean((3, 5)).reshape(len(images), 3, -1)
    red, blue = means[:, 0] - means[:, 2], means[:, 2] - means[:, 0]
    scores = np.maximum(np.stack([red, blue], 1), 0)
    boxes = np.repeat(cells()[None], len(images), 0)
    return np.concatenate([boxes, scores], 1).astype(np.float32)


def write(file: str, fixed: bool = False, anchors: bool = False) -> None:
    """Write the file; needs the package onnx."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def constant(name: str, values: object, kind: type = np.float32) -> onnx.TensorProto:
        return numpy_helper.from_array(np.array(values, kind), name)

    constants = [
        constant("cells", cells()[None]),
        constant("filter", np.array([[1, 0, -1], [-1, 0, 1]], np.float32)[:, :, None, None]),  # red - blue, blue - red
        constant("flat", [0, len(NAMES), -1], np.int64),
        constant("none", np.zeros((1, 4, 1))),
    ]
    nodes = [
        helper.make_node("AveragePool", ["images"], ["means"], kernel_shape=[CELL, CELL], strides=[CELL, CELL]),
        helper.make_node("Conv", ["means", "filter"], ["signed"]),
        helper.make_node("Relu", ["signed"], ["positive"]),
        helper.make_node("Reshape", ["positive", "flat"], ["scores"]),
        helper.make_node("ReduceSum", ["scores", "axis"], ["sum"], keepdims=1),
        helper.make_node("Mul", ["sum", "none"], ["zeros"]),  # cells for each picture of the batch
        helper.make_node("Add", ["zeros", "cells"], ["boxes"]),
    ]
    constants.append(constant("axis", [1], np.int64))
    count = (SIZE // CELL) ** 2
    if anchors:
        constants += [constant("one", np.ones((1, 1, 1)))]
        nodes += [
            helper.make_node("Mul", ["sum", "nought"], ["nothing"]),
            helper.make_node("Add", ["nothing", "one"], ["object"]),
            helper.make_node("Concat", ["boxes", "object", "scores"], ["rows"], axis=1),
            helper.make_node("Transpose", ["rows"], ["output0"], perm=[0, 2, 1]),
        ]
        constants.append(constant("nought", np.zeros((1, 1, 1))))
    else:
        nodes.append(helper.make_node("Concat", ["boxes", "scores"], ["output0"], axis=1))
    batch = 1 if fixed else "batch"
    shape = [batch, count, 5 + len(NAMES)] if anchors else [batch, 4 + len(NAMES), count]
    entry = helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, SIZE, SIZE])
    leaving = helper.make_tensor_value_info("output0", TensorProto.FLOAT, shape)
    model = helper.make_model(
        helper.make_graph(nodes, "red squares", [entry], [leaving], constants),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
    )
    helper.set_model_props(model, {"names": str(NAMES), "stride": "32"})
    onnx.checker.check_model(model)
    onnx.save(model, file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--fixed", action="store_true")
    parser.add_argument("--anchors", action="store_true")
    given = parser.parse_args()
    write(given.file, given.fixed, given.anchors)
