"""From a captured function to something that runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from ..errors import CompileError
from .capture import Captured
from .scalars import without_scalars

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

    Random numbers are drawn as torch draws them, so that a compiled dropout drops what an eager one does.

    Raises:
        CompileError: at the first run: there is no compiler, or it fails; nothing has been run.
    """
    if random_calls(captured) > 1:
        captured.said.append("run call by call: it draws random numbers more than once, and compiled code reorders them")
        return captured
    captured = without_scalars(captured)
    options: dict[str, Any] = {"cpp_wrapper": not any(v.is_cuda for v in captured.tensors)}
    if random_calls(captured):
        options["fallback_random"] = True
    compiled = torch.compile(captured.module, fullgraph=True, dynamic=False, options=options)
    tensors, ready = captured.tensors, False

    def first() -> None:
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # inductor's own
                compiled(*tensors)
        except Exception as error:  # whatever a compiler may say
            said = str(error).strip().split("\n")[0]
            raise CompileError(
                "plan", "a block could not be compiled", got=f"{type(error).__name__}: {said}",
                fix="a C++ compiler on the path (g++, or CXX=); or codegen='eager', or fallback=True",
            ) from error  # fmt: skip

    def run() -> None:
        nonlocal ready
        if not ready:
            first()
            ready = True
            return
        with torch.no_grad():
            compiled(*tensors)

    return run


generators: dict[str, Callable[[Captured], Run]] = {"eager": call_by_call, "inductor": inductor}
