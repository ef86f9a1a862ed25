"""Single numbers in double precision, handed to torch's compiler as vectors of one."""

from __future__ import annotations

import torch
from torch.fx import Graph, GraphModule

from .capture import Captured


def without_scalars(captured: Captured) -> Captured:
    """The same function, given the same memory: 0-dim float64 tensors as views with one element.

    torch's compiler takes a 0-dim float64 tensor on the CPU for a number of Python's: what is written into it is lost,
    without a word (torch 2.13). Such tensors are sums of losses, weights that are one number, and their moments.

    >>> import torch
    >>> from imprint.runtime.capture import capture
    >>> total = torch.zeros((), dtype=torch.float64)
    >>> captured = without_scalars(capture(lambda *_: (total.add_(2), ())[1], lambda: [("total", total)]))
    >>> captured()
    >>> captured.tensors[0].shape, total
    (torch.Size([1]), tensor(2., dtype=torch.float64))
    """
    if not any(_is_scalar(v) for v in captured.tensors):
        return captured
    graph = Graph()
    graph.output(graph.graph_copy(captured.module.graph, val_map={}))
    tensors = list(captured.tensors)
    for i, node in enumerate([n for n in graph.nodes if n.op == "placeholder"]):
        if _is_scalar(tensors[i]):
            last = [n for n in graph.nodes if n.op == "placeholder"][-1]
            with graph.inserting_after(last):
                number = graph.call_function(torch.ops.aten.view.default, (node, []))
            number.meta = dict(node.meta)
            node.replace_all_uses_with(number, delete_user_cb=lambda user, number=number: user is not number)
            tensors[i] = tensors[i].detach().view(1)
            node.meta = {"label": node.meta["label"]} if "label" in node.meta else {}
    graph.lint()
    return Captured(GraphModule(torch.nn.Module(), graph), tensors)


def _is_scalar(v: torch.Tensor) -> bool:
    return v.dim() == 0 and v.dtype == torch.float64
