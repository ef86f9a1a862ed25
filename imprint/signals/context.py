"""Context inputs for a whole model: one row a class, or one a sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from .stream import ContextStream

Tree = Any


class ClassContext(ContextStream):
    r"""The inputs of the context pass: for class k a floating input :math:`t_k = W_k`, with the data's mean and spread.

    Floating inputs get one row of W, ``[num_classes, numel]`` (values: :math:`t = y W`); integer inputs one fixed
    random sequence a class; masks get, for every class, that row of the first batch which is most like the others, so
    that they hide what they usually hide, whatever True means; tensors without a batch dimension pass unchanged.

    A mask is boolean, or floating with :math:`-\infty`, or of integers 0 and 1 beside an input that is no mask.

    Args:
        learned: W learns (a unit of its own, contrasting the raw input with W); else it keeps its random start.
        project: own map from codes ``[R, num_classes]`` to ``[R, numel]`` instead of W, for a single floating input.

    There is one row a class when the batch is at least that large, else one a sample.
    """

    paired = True

    def __init__(self, learned: bool = False, project: nn.Module | None = None) -> None:
        super().__init__()
        self.learned, self.project = learned, project

    def describe(self, inputs: Tree, dims: list[int | None], num_classes: int | None, width: int) -> dict[str, Any]:
        """What :meth:`build` needs: `dims` are the batch dimensions of the inputs' leaves, `width` that of a code."""
        inside = tree_flatten(inputs)[0]
        kinds = _kinds([None if dim is None else v for v, dim in zip(inside, dims, strict=True)])
        rows = [v.movedim(dim, 0) for v, dim in zip(inside, dims, strict=True) if dim is not None]
        usual = _usual([v for v, kind in zip(rows, filter(None, kinds), strict=True) if kind == "mask"])
        leaves: list[dict[str, Any]] = []
        for v, dim, kind in zip(inside, dims, kinds, strict=True):
            if dim is None:
                leaves.append({"dim": None})
                continue
            row = v.movedim(dim, 0)[usual]
            leaf: dict[str, Any] = {"dim": dim, "kind": kind, "size": tuple(row.shape), "dtype": v.dtype}
            if kind == "mask":
                leaf["row"] = row.flatten().tolist()
            else:
                a, b = (v.mean(), v.std(correction=0)) if kind == "float" else (v.min(), v.max())
                leaf["stats"] = (a.item(), b.item() or 1.0)
            leaves.append(leaf)
        return {"num_classes": num_classes, "width": width, "leaves": leaves}

    def build(self, record: dict[str, Any], device: torch.device) -> None:
        """Draw W and the integer sequences."""
        self.num_classes, self.leaves = record["num_classes"], record["leaves"]
        for i, leaf in enumerate(self.leaves):
            if leaf["dim"] is None:
                continue
            kind = {"dtype": leaf["dtype"], "device": device}
            if leaf["kind"] == "mask":
                self.register_buffer(f"row{i}", torch.tensor(leaf["row"], **kind).view(leaf["size"]))
                continue
            numel, (a, b) = torch.Size(leaf["size"]).numel(), leaf["stats"]
            if leaf["kind"] == "float" and self.project is None:
                weight = torch.randn(record["width"], numel, **kind) * b + a
                self.register_parameter(f"weight{i}", nn.Parameter(weight, requires_grad=self.learned))
            elif leaf["kind"] == "int":
                table = torch.randint(int(a), int(b) + 1, (self.num_classes or 1, numel), **kind)
                self.register_buffer(f"table{i}", table)

    def codes(self, onehot: Tensor | None, rows: int, error: Tensor | None) -> tuple[Tensor, bool]:
        """What W is read with, ``[R, width]``, and whether that is one row a class."""
        assert onehot is not None
        if self.num_classes is not None and self.num_classes <= len(onehot):
            return torch.eye(self.num_classes, dtype=onehot.dtype, device=onehot.device), True
        return onehot, False

    def candidates(self, inputs: Tree) -> Tensor | None:
        """Codes of all classes, to compare a sample with each; empty for values."""
        device = next(v.device for v in tree_flatten(inputs)[0] if isinstance(v, Tensor))
        return torch.eye(self.num_classes or 0, device=device)

    def forward(self, inputs: Tree, codes: Tensor) -> Tree:
        """Context inputs with ``len(codes)`` rows, in the structure of `inputs`."""
        leaves, spec = tree_flatten(inputs)
        made = [v if self.leaves[i]["dim"] is None else self._leaf(i, v, codes) for i, v in enumerate(leaves)]
        return tree_unflatten(made, spec)

    def _leaf(self, i: int, v: Tensor, codes: Tensor) -> Tensor:
        leaf = self.leaves[i]
        size = (len(codes), *leaf["size"])
        if leaf["kind"] == "mask":
            rows = self.get_buffer(f"row{i}").to(v.dtype).expand(size).clone()
        elif leaf["kind"] == "float":
            dtype = v.dtype if v.is_floating_point() else leaf["dtype"]  # what does not fit is the model's to say
            if self.project is not None:
                rows = self.project(codes.to(dtype)).view(size)
            else:
                weight = self.get_parameter(f"weight{i}")
                rows = (codes.to(weight.dtype) @ weight).to(dtype).view(size)
        else:
            table = self.get_buffer(f"table{i}")
            rows = table[codes.argmax(1) if len(table) > 1 else torch.zeros(len(codes), dtype=torch.long)].view(size)
        return rows.movedim(0, leaf["dim"])


def _kinds(leaves: list[Tensor | None]) -> list[str | None]:
    """``float``, ``int`` or ``mask``; None where there is no batch."""

    def kind(v: Tensor) -> str:
        if v.is_floating_point():
            return "mask" if bool((v == -torch.inf).any()) else "float"
        return "mask" if v.dtype == torch.bool else "bits" if 0 <= v.min() and v.max() <= 1 else "int"

    found = [None if v is None else kind(v) for v in leaves]
    bits = "mask" if "float" in found or "int" in found else "int"  # the classes must differ in something
    return [bits if k == "bits" else k for k in found]


def _usual(masks: list[Tensor]) -> int:
    """The sample whose masks are most like those of the others; 0 without any."""
    if not masks:
        return 0
    flat = torch.cat([v.flatten(1).float().clamp(-1, 1) for v in masks], 1)
    return int((flat - flat.mean(0)).abs().sum(1).argmin())  # of zeros and ones, this is the distance to all others
