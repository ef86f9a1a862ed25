"""Protos that the tests of all protos run through: every registered example, and what options make of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from imprint import protos
from imprint.protos import LIF, LRU, MLP, Aggregator, Auto, Conv, Elementwise, GRUStack, Proto, registry

WIDTH, GROUP, OUT = 3, {"a": 3, "b": 3}, 4  # of inputs, and of outputs that are Auto


@dataclass(frozen=True)
class Case:
    """A proto, the name of its naive reference, and the options that the reference needs."""

    make: Callable[[], Proto]
    naive: str
    options: dict[str, Any] = field(default_factory=dict)
    group: dict[str, int] = field(default_factory=lambda: dict(GROUP))


CASES: dict[str, Case] = {name: Case(example, name) for name, example in registry.items()} | {
    "gru, layernorm": Case(lambda: GRUStack(4, 2, layernorm=True), "gru"),
    "gru, one layer": Case(lambda: GRUStack(4), "gru"),
    "lstm, layernorm": Case(lambda: protos.LSTMStack(4, 2, layernorm=True), "lstm"),
    "rnn, relu, layernorm": Case(lambda: protos.RNNStack(4, 2, layernorm=True, act="relu"), "rnn"),
    "mlp, one layer": Case(lambda: MLP([Auto, 4]), "mlp"),
    "mlp, one layer and act": Case(lambda: MLP([3, 4], act="gelu"), "mlp", {"act": "gelu", "single": True}),
    "mlp, tanh, norm": Case(lambda: MLP([3, 5, 6, 4], act=nn.Tanh, norm="layer"), "mlp", {"act": "tanh"}),
    "aggregator, concat": Case(lambda: Aggregator("concat"), "aggregator", group={"a": 2, "b": 3, "c": 1}),
    "aggregator, sum->linear": Case(lambda: Aggregator("sum->linear", out_dim=Auto), "aggregator"),
    "aggregator, mean": Case(lambda: Aggregator("mean"), "aggregator"),
    "elementwise, mean -> tanh": Case(lambda: Elementwise("mean -> tanh"), "elementwise"),
    "elementwise, sub": Case(lambda: Elementwise("sub"), "elementwise"),
    "elementwise, mul": Case(lambda: Elementwise("mul"), "elementwise", group={"a": 2, "b": 2, "c": 2}),
    "elementwise, max→neg→square": Case(lambda: Elementwise("max→neg→square"), "elementwise"),
    "elementwise, one": Case(lambda: Elementwise("square"), "elementwise", group={"a": 2}),
    "lru, ring": Case(lambda: LRU(4, r_min=0.8, r_max=0.99, max_phase=0.6), "lru"),
    "indrnn, tanh": Case(lambda: protos.IndRNN(4, act="tanh"), "indrnn", {"act": "tanh"}),
    "leaky, fixed": Case(lambda: protos.Leaky(4, decay=0.8, learn=False), "leaky"),
    "lif, open reset": Case(
        lambda: LIF(4, tau=5.0, threshold=0.5, surrogate="fast_sigmoid", detach_reset=False), "lif",
        {"tau": 5.0, "threshold": 0.5, "psi": "fast_sigmoid"},
    ),
    "lif, unconnected": Case(lambda: LIF(4, surrogate="atan", recurrent_weights=False), "lif", {"psi": "atan"}),
    "alif, open reset": Case(
        lambda: protos.ALIF(4, tau=(5.0, 30.0), beta=0.5, threshold=0.8, detach_reset=False), "alif",
        {"tau": 5.0, "slow": 30.0, "beta": 0.5, "threshold": 0.8},
    ),
    "conv, kernel 1": Case(lambda: Conv(4, 1, act="tanh"), "conv", {"act": "tanh"}),
    "conv, dilated": Case(lambda: Conv(4, 3, dilation=2, layers=2, act=torch.tanh), "conv", {"act": "tanh"}),
    "transformer, context 1": Case(lambda: protos.Transformer(4, 1, 1, context=1, expansion=1), "transformer"),
    "transformer, relu": Case(
        lambda: protos.Transformer(4, 2, 1, context=3, act="relu"), "transformer", {"act": "relu"}
    ),
}  # fmt: skip
# for those without a naive reference of their own
WRAPPED: dict[str, Case] = {
    "torch_cell, gru": Case(lambda: protos.TorchCell(nn.GRUCell(3, 4)), ""),
    "torch_cell, pair": Case(lambda: protos.TorchCell(Echo(), init={"h": 4, "sum": 3}), ""),
    "torch_module, tuple": Case(lambda: protos.TorchModule(Twice()), ""),
}


class Echo(nn.Module):
    """A cell that returns (output, state), its state a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_hh, self.read = nn.Parameter(torch.randn(4, 4)), nn.Linear(3, 4)

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        h = torch.tanh(self.read(x + state["sum"]) + state["h"] @ self.weight_hh)
        return 2 * h, {"h": h, "sum": 0.5 * state["sum"] + x}


class Twice(nn.Module):
    """A module that returns a count beside its output."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> tuple[int, dict[str, Tensor]]:
        return 2, {"rows": self.linear(x) * 2}


def bound(case: Case, seed: int = 0, **kind: Any) -> Proto:
    """In float64 unless told otherwise; spiking neurons with weights that make them spike."""
    torch.manual_seed(seed)
    proto = case.make()
    width: Any = case.group if proto.grouped else WIDTH if proto.input_dim is None else proto.input_dim
    proto.bind(width, OUT if proto.auto_output else None, **({"dtype": torch.float64} | kind))
    if isinstance(proto, LIF) and proto.input.weight.device.type != "meta":
        with torch.no_grad():
            proto.input.weight.mul_(5.0)
    return proto


def drives_for(proto: Proto, ticks: int, rows: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Any:
    """Random drives ``[T, B, D]``; of every sub-port, for a group."""
    draw = torch.Generator().manual_seed(seed)
    make = lambda width: torch.randn(ticks, rows, width, generator=draw, dtype=torch.float64).to(dtype)
    return {k: make(w) for k, w in proto.input_dim.items()} if proto.grouped else make(proto.input_dim)


def at(drives: Any, t: int) -> Any:
    """One tick's drive."""
    return {k: v[t] for k, v in drives.items()} if isinstance(drives, dict) else drives[t]


def rows_of(tree: Any, rows: Any, dim: int = 0) -> Any:
    """Some rows of a state or drive."""
    leaves, kind = tree_flatten(tree)
    return tree_unflatten([v.index_select(dim, torch.as_tensor(rows)) for v in leaves], kind)


def unroll(proto: Proto, drives: Any, state: Any) -> tuple[Any, list[Tensor]]:
    """A loop of steps."""
    made = []
    for t in range(len(tree_leaves(drives)[0])):
        state, outs = proto.step(at(drives, t), state)
        made.append(outs)
    return state, [torch.stack(layer) for layer in zip(*made, strict=True)]


def warm(proto: Proto, rows: int, ticks: int = 3) -> Any:
    """A state that is not zero."""
    with torch.no_grad():
        return unroll(proto, drives_for(proto, ticks, rows, seed=8), proto.init_state(rows))[0]
