"""From a captured function to something that runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._ops import OpOverload
from torch._subclasses import FakeTensorMode
from torch.fx import Graph, GraphModule
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from ..errors import CompileError
from .capture import Captured

Run = Callable[[], None]
RANDOM = ("rand", "bernoulli", "dropout", "normal", "uniform", "multinomial", "exponential")


def random_calls(captured: Captured) -> int:
    """How often it draws random numbers."""
    return sum(any(word in str(n.target) for word in RANDOM) for n in captured.module.graph.nodes)


def call_by_call(captured: Captured) -> Run:
    """Its calls one after the other, as torch runs them."""
    return captured


def inductor(captured: Captured) -> Run:
    """One function, compiled by torch's inductor; it is compiled when it is first run.

    The calls go to inductor as they are, and not through ``torch.compile``: there is no Python left to trace, its
    guards would compare tensors that are fixed at every call, and it loses what is written to a float64 scalar.
    Random numbers are drawn as torch draws them, so that a compiled dropout drops what an eager one does; where several
    are drawn, compiled code would do so in another order, and the block runs call by call.

    Raises:
        CompileError: at the first run: there is no compiler, or it fails; nothing has been run.
    """
    if random_calls(captured) > 1:
        captured.said.append("run call by call: it draws random numbers several times, and compiled code reorders them")
        return captured
    ready: Run | None = None

    def run() -> None:
        nonlocal ready
        if ready is None:
            try:
                ready = _compiled(captured)
            except Exception as error:  # whatever a compiler may say
                said = str(error).strip().split("\n")[0]
                raise CompileError(
                    "plan", "a block could not be compiled", got=f"{type(error).__name__}: {said}",
                    fix="a C++ compiler on the path (g++, or CXX=); or codegen='eager', or fallback=True",
                ) from error  # fmt: skip
        with torch.no_grad():
            ready()

    return run


def _compiled(captured: Captured) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # inductor's own
        from torch._inductor.compile_fx import compile_fx, compile_fx_inner  # it takes a second to import

    tensors = [v.detach() for v in captured.tensors]  # the same memory, and no parameters
    options = {"cpp_wrapper": not any(v.is_cuda for v in tensors), "size_asserts": False, "alignment_asserts": False}
    options |= {"fallback_random": True} if random_calls(captured) else {}
    made: list[Any] = []
    whole = len({v.untyped_storage()._cdata for v in tensors}) == len(tensors)

    def inner(module: GraphModule, inputs: Any, **facts: Any) -> Any:
        """What autograd's wrapper would call: if it takes just our tensors and returns none, it needs no wrapper."""
        nonlocal whole
        whole = whole and len(inputs) == len(tensors) and not module.graph.output_node().args[0] and not made
        made.append(compile_fx_inner(module, inputs, **facts))
        return made[0]

    context = TracingContext(FakeTensorMode(shape_env=ShapeEnv()))  # without one nothing is kept on disk
    # what autograd's own cache returns would come without `inner`; inductor's cache is below it
    with torch.no_grad(), tracing(context), torch._functorch.config.patch(enable_autograd_cache=False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # inductor's own
            wrapped: Any = compile_fx(
                _bare(captured.module), tensors, inner_compile=inner, config_patches=options, ignore_shape_env=True
            )
    if not (whole and made):
        return lambda: wrapped(*captured.tensors)
    call, written = made[0].current_callable, _written(captured)

    def run() -> None:
        call(list(captured.tensors))  # given anew: it empties the list
        torch.autograd.graph.increment_version(written)

    return run


def _written(captured: Captured) -> list[Tensor]:
    """Tensors that it changes: autograd is to know, as what it has saved of them is spoilt."""
    found, nodes = set(), captured.module.graph.nodes
    for node in nodes:
        if isinstance(node.target, OpOverload):
            for v, told in zip(node.args, node.target._schema.arguments, strict=False):
                if told.alias_info is not None and told.alias_info.is_write:
                    found.add(v)
    inputs = [n for n in nodes if n.op == "placeholder"]
    return [v for n, v in zip(inputs, captured.tensors, strict=True) if n in found]


def _bare(module: GraphModule) -> GraphModule:
    """A copy, as the compiler changes what it is given, without what tracing has noted."""
    graph = Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    for node in graph.nodes:
        node.meta.clear()
    return GraphModule(module, graph)


generators: dict[str, Callable[[Captured], Run]] = {"eager": call_by_call, "inductor": inductor}
