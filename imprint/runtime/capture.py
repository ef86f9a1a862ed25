"""From a function of fixed tensors to a flat graph of aten calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from ..errors import CaptureError
from .audits import syncs
from .capture_norm import declare_norms
from .store import undone


class Captured:
    """A function that reads and writes fixed tensors, and nothing else.

    Attributes:
        module: takes them in order and returns nothing.
        tensors: the fixed tensors.
        said: what was made of it, a line each.
    """

    def __init__(self, module: GraphModule, tensors: list[Tensor]) -> None:
        self.module, self.tensors = module, tensors
        self.said: list[str] = []

    def __call__(self) -> None:
        """Run it, call by call."""
        with torch.no_grad():
            self.module(*self.tensors)


def capture(function: Callable[..., Any], fixed: Callable[[], Iterable[tuple[str, Tensor]]]) -> Captured:
    """Run `function` twice, once to make what it makes lazily and once to write down its calls; both are undone.

    Args:
        function: works in place on fixed tensors.
        fixed: names and tensors; asked again after the first run.
    """
    tried(function, fixed)
    named = {id(v): (name, v) for name, v in fixed()}
    tensors = [v for _, v in named.values()]
    with undone(tensors):
        try:
            # what each call gives is noted as a fake tensor, and without a context in a mode of its own each time
            with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
                made = make_fx(function)(*tensors)
        except CaptureError:
            raise
        except Exception as error:  # it ran a moment ago: what fails is the capture
            said = str(error).strip().split(". ")[0].split("\n")[0]
            raise CaptureError(
                _where(error), "it cannot be captured", got=f"{type(error).__name__}: {said}",
                fix="no .item(), no branch on a tensor, no shape that depends on data; or fallback=True",
            ) from error  # fmt: skip
    declare_norms(made)
    if found := syncs(made):
        raise CaptureError(
            "plan", "it cannot be captured: sizes or branches depend on data", got="; ".join(found),
            fix="torch.where in place of a boolean index, sums over view.valid; or fallback=True",
        )  # fmt: skip
    names = {node: name for node, (name, _) in zip(_inputs(made), named.values(), strict=True)}
    for (node, name), v in zip(names.items(), tensors, strict=True):
        node.meta |= {"label": name, "storage": v.untyped_storage()._cdata, "offset": v.storage_offset()}
    return _flat(made, tensors)


def tried(function: Callable[..., Any], fixed: Callable[[], Iterable[tuple[str, Tensor]]]) -> None:
    """Run it once, undone: what it makes lazily is there afterwards, and fixed tensors that are new are zero."""
    before = {id(v): v for _, v in fixed()}
    with undone(before.values()):
        function()
    for _, v in fixed():
        if id(v) not in before:
            v.zero_()


def _where(error: Exception) -> str:
    """Who was running: the innermost module of a graph, or unit of a model, in the error's trace."""
    found, trace = "plan", error.__traceback__
    while trace is not None:
        held = trace.tb_frame.f_locals
        for name in ("self", "module", "proto", "objective"):
            v = held.get(name)
            label = getattr(v, "name", None)
            if isinstance(v, torch.nn.Module) and isinstance(label, str) and label:
                found = f"module {label!r}"
            elif isinstance(v, torch.nn.Module) and trace.tb_frame.f_code.co_name in ("step", "forward", "scan"):
                found = found.split(", ")[0] + f", {type(v).__name__}"
        trace = trace.tb_next
    return found


def _inputs(module: GraphModule) -> list[torch.fx.Node]:
    return [n for n in module.graph.nodes if n.op == "placeholder"]


def _flat(module: GraphModule, tensors: list[Tensor]) -> Captured:
    """Only what is used as inputs, and what was read besides, as inputs too."""
    graph, inputs, used = module.graph, _inputs(module), []
    for node, v in zip(inputs, tensors, strict=True):
        if node.users:
            used.append(v)
        else:
            graph.erase_node(node)
    for node in graph.nodes:  # data that the host brought while this was captured is there for good
        if node.target in (torch.ops.aten.lift_fresh_copy.default, torch.ops.aten.lift_fresh.default):
            node.target = torch.ops.aten.clone.default
    first = next(iter(graph.nodes))
    others: dict[str, torch.fx.Node] = {}
    for node in [n for n in graph.nodes if n.op == "get_attr"]:
        name = str(node.target)
        if name not in others:
            with graph.inserting_before(first):
                others[name] = graph.placeholder(name)
            v = getattr(module, name)
            others[name].meta = {**node.meta, "label": name}
            others[name].meta |= {"storage": v.untyped_storage()._cdata, "offset": v.storage_offset()}
            used.insert(len(others) - 1, v)
        node.replace_all_uses_with(others[name])
        graph.erase_node(node)
    made = GraphModule(torch.nn.Module(), graph)
    made.graph.lint()
    return Captured(made, used)
