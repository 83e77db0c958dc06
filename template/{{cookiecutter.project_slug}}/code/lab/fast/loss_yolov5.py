"""YOLOv5's loss in fixed shapes: nothing is picked by a mask, so the processor never waits to learn how much matched.

The formulas are those of YOLOv5's documentation (architecture, "build targets" and "losses"): a target belongs to an
anchor when neither side's ratio exceeds `anchor_t`; it is also given to the neighbouring cells that its centre is
nearer to; box loss 1 - CIoU, objectness towards the CIoU, class by cross-entropy. Every target is tried with every
anchor and five cells, and those that do not fit weigh nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from ultralytics.utils.metrics import bbox_iou, smooth_bce

BALANCE = {3: (4.0, 1.0, 0.4)}  # of objectness, finest grid first
BALANCE_OTHER = (4.0, 1.0, 0.25, 0.06, 0.02)
# the cells that may take a target, as (x, y) steps of half a cell from its centre: its own, left, above, right, below
STEPS = ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (-0.5, 0.0), (0.0, -0.5))


def expressible(hyp: dict[str, Any]) -> bool:
    """Whether this loss covers the hyper-parameters: it has no focal loss."""
    return not hyp.get("fl_gamma")


class Loss:
    """Called with predictions and targets as YOLOv5's ComputeLoss is; the same results but for rounding.

    Predictions: for each of the L grids a tensor (B, anchors, height, width, 5 + classes). Targets: (T, 6), picture,
    class, centre x and y, width, height, as shares of the picture. Returns the loss times B, shape (1,), and its
    detached parts, shape (3,): box, objectness, class.
    """

    def __init__(self, model: Any) -> None:
        inner = model.module if hasattr(model, "module") else model
        head, hyp = inner.model[-1], model.hyp
        self.hyp, self.classes, self.anchors = hyp, head.nc, head.anchors
        self.device = next(model.parameters()).device
        self.balance = BALANCE.get(head.nl, BALANCE_OTHER)
        self.hit, self.miss = smooth_bce(eps=hyp.get("label_smoothing", 0.0))
        self.class_weight = torch.tensor([hyp["cls_pw"]], device=self.device)
        self.object_weight = torch.tensor([hyp["obj_pw"]], device=self.device)
        self.steps = torch.tensor(STEPS, device=self.device)
        self.numbers = torch.arange(self.classes, device=self.device)
        self._grids: dict[tuple[int, int], Any] = {}

    def _grid(self, height: int, width: int) -> Any:
        """(width, height) on the device; made once, because making it waits for the device."""
        if (height, width) not in self._grids:
            self._grids[height, width] = torch.tensor([width, height], device=self.device, dtype=torch.float32)
        return self._grids[height, width]

    def __call__(self, predictions: list[Any], targets: Any) -> tuple[Any, Any]:
        """See the class."""
        box, objects, classes = (torch.zeros(1, device=self.device) for _ in range(3))
        for level, prediction in enumerate(predictions):
            one_box, one_object, one_class = self._level(level, prediction, targets)
            box = box + one_box
            objects = objects + one_object * self.balance[level]
            classes = classes + one_class
        box, objects, classes = box * self.hyp["box"], objects * self.hyp["obj"], classes * self.hyp["cls"]
        return (box + objects + classes) * len(predictions[0]), torch.cat((box, objects, classes)).detach()

    def _level(self, level: int, prediction: Any, targets: Any) -> tuple[Any, Any, Any]:
        pictures, anchors, height, width, _ = prediction.shape
        fits, cell, want, anchor, number = self._match(self.anchors[level], height, width, targets)
        count = fits.sum().clamp(min=1)
        picture = targets[:, 0].long().expand(fits.shape).reshape(-1)
        wanted_class = targets[:, 1].long().expand(fits.shape).reshape(-1)
        fits = fits.reshape(-1)
        x, y = cell[:, 0], cell[:, 1]
        found = prediction[picture, number, y, x]

        centre = found[:, 0:2].sigmoid() * 2 - 0.5
        size = (found[:, 2:4].sigmoid() * 2) ** 2 * anchor
        # what does not fit is given its wanted box: weighing nothing would not do, 0 x infinity is no number
        centre = torch.where(fits[:, None], centre, want[:, :2])
        size = torch.where(fits[:, None], size, want[:, 2:])
        iou = bbox_iou(torch.cat((centre, size), 1), want, CIoU=True).reshape(-1)
        box = ((1.0 - iou) * fits).sum() / count

        # objectness: what fits writes its overlap into its cell, the rest into a place beyond the last one
        places = pictures * anchors * height * width
        place = ((picture * anchors + number) * height + y) * width + x
        aim = torch.zeros(places + 1, dtype=prediction.dtype, device=self.device)
        aim.index_put_((torch.where(fits, place, places),), iou.detach().clamp(0).to(aim.dtype))
        objects = binary_cross_entropy_with_logits(
            prediction[..., 4], aim[:places].view(prediction.shape[:4]), pos_weight=self.object_weight
        )

        if self.classes == 1:
            return box, objects, torch.zeros(1, device=self.device)
        logits = found[:, 5 : 5 + self.classes]
        hot = torch.where(wanted_class[:, None] == self.numbers, self.hit, self.miss).to(logits.dtype)
        each = binary_cross_entropy_with_logits(logits, hot, pos_weight=self.class_weight, reduction="none")
        return box, objects, (each * fits[:, None]).sum() / (count * self.classes)

    def _match(self, anchors: Any, height: int, width: int, targets: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Every target (T) tried with every anchor (A) and cell (5), flattened in this order: cells, anchors, targets.

        Returns which fit, bool (5, A, T); and, each with 5 A T rows: cell x and y, int64; the wanted box relative to
        the cell, in cells; the anchor's width and height in cells; the anchor's number.
        """
        grid = self._grid(height, width)
        centre, size = targets[:, 2:4] * grid, targets[:, 4:6] * grid
        ratio = size / anchors[:, None]
        matches = torch.maximum(ratio, 1 / ratio).amax(2) < self.hyp["anchor_t"]
        opposite = grid - centre
        low = (centre % 1 < 0.5) & (centre > 1)  # (T, 2): nearer to the cell on the left, above
        high = (opposite % 1 < 0.5) & (opposite > 1)
        takes = torch.stack((torch.ones_like(low[:, 0]), low[:, 0], low[:, 1], high[:, 0], high[:, 1]))
        fits = takes[:, None] & matches[None]
        shape = (*fits.shape, 2)
        cell = (centre - self.steps[:, None]).long()  # (5, T, 2)
        x, y = cell[..., 0].clamp(0, width - 1), cell[..., 1].clamp(0, height - 1)
        cell = torch.stack((x, y), 2)
        offset = (centre - cell)[:, None].expand(shape).reshape(-1, 2)
        cell = cell[:, None].expand(shape).reshape(-1, 2)
        anchor = anchors[None, :, None].expand(shape).reshape(-1, 2)
        # a box that does not fit is replaced by its anchor, so that no infinity gets near the gradients
        size = torch.where(fits.reshape(-1, 1), size.expand(shape).reshape(-1, 2), anchor)
        number = torch.arange(len(anchors), device=self.device)[None, :, None].expand(fits.shape).reshape(-1)
        return fits, cell, torch.cat((offset, size), 1), anchor, number
