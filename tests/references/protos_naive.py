"""What each proto computes, by hand: one row after the other, one tick after the other, a loop for every sum over time.

``NAIVE[name](proto, drives, control)`` reads the parameters of a bound proto and returns its layers' outputs,
``[T, B, width]`` each, from the initial state. With `control` it makes one plausible mistake.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Row = Tensor  # one row's values, [D]


def over_rows(run: Callable[[list[Any]], list[list[Row]]], drives: Any) -> list[Tensor]:
    """`run` maps one row's drives, tick by tick, to ``[layer][tick]``; the rows side by side."""
    if isinstance(drives, dict):
        ticks, rows = next(iter(drives.values())).shape[:2]
        split = [[{k: v[t, b] for k, v in drives.items()} for t in range(ticks)] for b in range(rows)]
    else:
        split = [[drives[t, b] for t in range(drives.shape[0])] for b in range(drives.shape[1])]
    made = [run(row) for row in split]
    return [torch.stack([torch.stack(row[i]) for row in made], 1) for i in range(len(made[0]))]


def linear(x: Row, weight: Tensor, bias: Tensor | None = None) -> Row:
    """Each output a sum over inputs."""
    out = torch.stack([sum(w * v for w, v in zip(line, x, strict=True)) for line in weight])
    return out if bias is None else out + bias


def sigmoid(v: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-v))


def tanh(v: Tensor) -> Tensor:
    return (torch.exp(v) - torch.exp(-v)) / (torch.exp(v) + torch.exp(-v))


def gelu(v: Tensor) -> Tensor:
    return v * 0.5 * (1 + torch.erf(v / math.sqrt(2)))


def relu(v: Tensor) -> Tensor:
    return torch.where(v > 0, v, torch.zeros_like(v))


ACTS = {"relu": relu, "tanh": tanh, "gelu": gelu, "sigmoid": sigmoid, "identity": lambda v: v}


def layer_norm(v: Row, norm: Any) -> Row:
    mean = v.sum() / len(v)
    spread = ((v - mean) ** 2).sum() / len(v)
    return (v - mean) / torch.sqrt(spread + norm.eps) * norm.weight + norm.bias


def stack(
    proto: Any, drives: Tensor, cell: Callable[[Any, Row, Any], Any], start: Callable[[], Any],
    seen: Callable[[Any], Row], resets: bool = False,
) -> list[Tensor]:  # fmt: skip
    """Layers of recurrent cells; with norms in front of each and behind the last; with resets at their ticks."""

    def run(row: list[Row]) -> list[list[Row]]:
        states: list[Any] = [start() for _ in proto.cells]
        outs: list[list[Row]] = [[] for _ in proto.cells]
        for t, x in enumerate(row):
            if resets and t and t % proto.reset_every == 0:
                states = [start() for _ in proto.cells]
            if proto.layernorm:
                x = layer_norm(x, proto.norms[0])
            for i, each in enumerate(proto.cells):
                states[i] = cell(each, x, states[i])
                x = seen(states[i])
                if proto.layernorm:
                    x = layer_norm(x, proto.norms[i + 1])
                outs[i].append(x)
        return outs

    return over_rows(run, drives)


def gru(proto: Any, drives: Tensor, control: bool = False, resets: bool = False) -> list[Tensor]:
    n = proto.hidden

    def cell(c: Any, x: Row, h: Row) -> Row:
        a = linear(x, c.weight_ih, c.bias_ih)
        b = linear(h, c.weight_hh, c.bias_hh)
        r, z = sigmoid(a[:n] + b[:n]), sigmoid(a[n : 2 * n] + b[n : 2 * n])
        inner = r * b[2 * n :]
        if control:  # the reset gate in front of the recurrent weights, as in the paper and not as in torch
            inner = linear(r * h, c.weight_hh[2 * n :], c.bias_hh[2 * n :])
        return (1 - z) * tanh(a[2 * n :] + inner) + z * h

    return stack(proto, drives, cell, lambda: drives.new_zeros(n), lambda h: h, resets)


def lstm(proto: Any, drives: Tensor, control: bool = False) -> list[Tensor]:
    n = proto.hidden

    def cell(c: Any, x: Row, state: tuple[Row, Row]) -> tuple[Row, Row]:
        return lstm_tick(c, x, state, n, control)

    return stack(proto, drives, cell, lambda: (drives.new_zeros(n), drives.new_zeros(n)), lambda s: s[0])


def lstm_tick(c: Any, x: Row, state: tuple[Row, Row], n: int, control: bool) -> tuple[Row, Row]:
    h, old = state
    y = linear(x, c.weight_ih, c.bias_ih) + linear(h, c.weight_hh, c.bias_hh)
    i, f, g, o = sigmoid(y[:n]), sigmoid(y[n : 2 * n]), tanh(y[2 * n : 3 * n]), sigmoid(y[3 * n :])
    if control:  # input and forget gates exchanged
        i, f = f, i
    new = f * old + i * g
    return o * tanh(new), new


def rnn(proto: Any, drives: Tensor, control: bool = False) -> list[Tensor]:
    def cell(c: Any, x: Row, h: Row) -> Row:
        bias = 0 if control else c.bias_hh
        return ACTS[proto.act](linear(x, c.weight_ih, c.bias_ih) + linear(h, c.weight_hh) + bias)

    return stack(proto, drives, cell, lambda: drives.new_zeros(proto.hidden), lambda h: h)


def mlp(proto: Any, drives: Tensor, control: bool = False, act: str = "relu", single: bool = False) -> list[Tensor]:
    def run(row: list[Row]) -> list[list[Row]]:
        outs: list[list[Row]] = [[] for _ in proto.layers]
        for x in row:
            for i, layer in enumerate(proto.layers):
                x = linear(x, layer[0].weight, layer[0].bias)
                last = i == len(proto.layers) - 1
                if proto.norm == "layer" and not last:
                    x = layer_norm(x, layer[1])
                if control or not last or single:  # the mistake: an activation behind the last layer, too
                    x = ACTS[act](x)
                outs[i].append(x)
        return outs

    return over_rows(run, drives)


def aggregator(proto: Any, drives: dict[str, Tensor], control: bool = False) -> list[Tensor]:
    def run(row: list[dict[str, Row]]) -> list[list[Row]]:
        outs = []
        for parts in row:
            values = list(parts.values())
            if control:  # in the wrong order, or averaged wrongly
                values = [2 * values[0], *values[1:]] if proto.join != "concat" else values[::-1]
            joined = torch.cat(values)
            if proto.join != "concat":
                joined = sum(values) / (len(values) if proto.join == "mean" else 1)  # type: ignore[assignment]
            projected = proto.mode.endswith("linear")
            outs.append(linear(joined, proto.linear.weight, proto.linear.bias) if projected else joined)
        return [outs]

    return over_rows(run, drives)


def elementwise(proto: Any, drives: dict[str, Tensor], control: bool = False) -> list[Tensor]:
    def unit(op: str, values: list[float]) -> Any:
        first, *then = op.split("→")
        if first == "sub":
            v = values[0] + values[1] if control else values[0] - values[1]
        else:
            many = {
                "add": sum, "mul": math.prod, "max": max, "min": min, "mean": lambda v: sum(v) / len(v),
                "square": lambda v: v[0] * v[0], "abs": lambda v: abs(v[0]), "neg": lambda v: -v[0],
            }  # fmt: skip
            v = many[first]([2 * values[0], *values[1:]] if control else values)
        for name in then:
            v = {"abs": abs, "square": lambda a: a * a, "tanh": tanh, "neg": lambda a: -a}[name](v)
        return v

    def run(row: list[dict[str, Row]]) -> list[list[Row]]:
        width = len(next(iter(row[0].values())))
        return [[torch.stack([unit(proto.op, [p[i] for p in parts.values()]) for i in range(width)]) for parts in row]]

    return over_rows(run, drives)


def lru(proto: Any, drives: Tensor, control: bool = False) -> list[Tensor]:
    n = proto.hidden
    eigen = torch.exp(torch.complex(-torch.exp(proto.nu), torch.exp(proto.theta)))
    b = torch.complex(proto.input.weight[:n], proto.input.weight[n:])
    c = torch.complex(proto.output.weight[:, :n], -proto.output.weight[:, n:])
    scale = 1 if control else torch.exp(proto.gamma)  # the mistake: no normalisation of the input

    def run(row: list[Row]) -> list[list[Row]]:
        state, outs = torch.zeros(n, dtype=torch.complex128), []
        for x in row:
            state = eigen * state + scale * linear(x.to(torch.complex128), b)
            outs.append(linear(state, c).real + linear(x, proto.skip.weight))
        return [outs]

    return over_rows(run, drives)


def mingru(proto: Any, drives: Tensor, control: bool = False) -> list[Tensor]:
    n = proto.hidden

    def run(row: list[Row]) -> list[list[Row]]:
        h, outs = drives.new_zeros(n), []
        for x in row:
            y = linear(x, proto.input.weight, proto.input.bias)
            z = sigmoid(y[:n])
            h = z * h + (1 - z) * y[n:] if control else (1 - z) * h + z * y[n:]
            outs.append(h)
        return [outs]

    return over_rows(run, drives)


def indrnn(proto: Any, drives: Tensor, control: bool = False, act: str = "relu") -> list[Tensor]:
    def run(row: list[Row]) -> list[list[Row]]:
        h, outs = drives.new_zeros(proto.hidden), []
        for x in row:
            past = h.roll(1) if control else h  # the mistake: a neighbour's state
            h = ACTS[act](linear(x, proto.input.weight, proto.input.bias) + proto.weight_hh * past)
            outs.append(h)
        return [outs]

    return over_rows(run, drives)


def leaky(proto: Any, drives: Tensor, control: bool = False) -> list[Tensor]:
    a = sigmoid(proto.logit)

    def run(row: list[Row]) -> list[list[Row]]:
        h, outs = drives.new_zeros(proto.hidden), []
        for x in row:
            gain = 1 if control else 1 - a
            h = a * h + gain * linear(x, proto.input.weight, proto.input.bias)
            outs.append(h)
        return [outs]

    return over_rows(run, drives)


class Step(torch.autograd.Function):
    """A step whose derivative is replaced by `psi` of how far the potential is above the threshold."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, psi: Callable[[float], float]) -> Tensor:  # type: ignore[override]
        ctx.slopes = torch.tensor([psi(float(x)) for x in v], dtype=v.dtype)
        return torch.tensor([1.0 if x > 0 else 0.0 for x in v], dtype=v.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        return grad * ctx.slopes, None


PSI: dict[str, Callable[[float], float]] = {
    "triangular": lambda v: 0.3 * max(0.0, 1.0 - abs(v)),
    "fast_sigmoid": lambda v: 1 / (1 + 10 * abs(v)) ** 2,
    "atan": lambda v: 1 / (1 + (math.pi * v) ** 2),
}


def spiking(
    proto: Any, drives: Tensor, control: bool = False, psi: str = "triangular", tau: float = 20.0,
    slow: float | None = None, beta: float = 0.0, threshold: float = 1.0,
) -> list[Tensor]:  # fmt: skip
    """LIF, and ALIF with a slow time constant: spikes are kept as a state of their own."""
    decay = math.exp(-1 / tau)

    def run(row: list[Row]) -> list[list[Row]]:
        v, z, a, outs = *(drives.new_zeros(proto.hidden) for _ in "vza"), []
        for x in row:
            back = linear(z, proto.back.weight) if proto.recurrent_weights else 0
            reset = z.detach() if proto.detach_reset else z
            new = decay * v + linear(x, proto.input.weight) + back - threshold * reset
            if control:  # a reset to zero instead of by subtraction
                new = decay * v * (1 - reset) + linear(x, proto.input.weight) + back
            if slow is not None:
                a = math.exp(-1 / slow) * a + z
            v = new
            z = Step.apply((v - threshold - beta * a) / threshold, PSI[psi])
            outs.append(z)
        return [outs]

    return over_rows(run, drives)


def lif(proto: Any, drives: Tensor, control: bool = False, **options: Any) -> list[Tensor]:
    return spiking(proto, drives, control, **options)


def alif(proto: Any, drives: Tensor, control: bool = False, **options: Any) -> list[Tensor]:
    return spiking(proto, drives, control, **({"slow": 200.0, "beta": 0.17} | options))


def conv(proto: Any, drives: Tensor, control: bool = False, act: str = "relu") -> list[Tensor]:
    def run(row: list[Row]) -> list[list[Row]]:
        values, outs = row, []
        for layer, d in zip(proto.convs, proto.dilations, strict=True):
            k, made = layer.weight.shape[2], []
            for t in range(len(values)):
                total = layer.bias
                for i in range(k):
                    at = t - (i if control else k - 1 - i) * d  # the mistake: the kernel turned round
                    if at >= 0:
                        total = total + linear(values[at], layer.weight[:, :, i])
                made.append(ACTS[act](total))
            outs.append(made)
            values = made
        return outs

    return over_rows(run, drives)


def transformer(proto: Any, drives: Tensor, control: bool = False, act: str = "gelu") -> list[Tensor]:
    """No cache: every layer keeps all its keys and values; positions count from the first tick."""
    size = proto.width // proto.heads

    def turned(v: Row, t: int) -> Row:
        pairs = torch.complex(v[: size // 2], v[size // 2 :])
        speeds = torch.tensor([10000.0 ** (-2 * i / size) for i in range(size // 2)], dtype=v.dtype)
        pairs = pairs * torch.exp(torch.complex(torch.zeros_like(speeds), t * speeds))
        return torch.cat([pairs.real, pairs.imag])

    def attend(block: Any, keys: list[Row], values: list[Row], q: Row) -> Row:
        t, heads = len(keys) - 1, []
        first = max(0, t - proto.context + (0 if control else 1))  # the mistake: one tick too many
        for head in range(proto.heads):
            part = slice(head * size, (head + 1) * size)
            scores = [
                (turned(q[part], t) * turned(keys[s][part], s)).sum() / math.sqrt(size) for s in range(first, t + 1)
            ]
            weights = [torch.exp(score) for score in scores]
            heads.append(sum(w * values[first + i][part] for i, w in enumerate(weights)) / sum(weights))
        return linear(torch.cat(heads), block.out.weight, block.out.bias)

    def run(row: list[Row]) -> list[list[Row]]:
        past: list[tuple[list[Row], list[Row]]] = [([], []) for _ in proto.blocks]
        outs: list[list[Row]] = [[] for _ in proto.blocks]
        for drive in row:
            x = linear(drive, proto.embed.weight, proto.embed.bias)
            for i, block in enumerate(proto.blocks):
                q, k, v = linear(layer_norm(x, block.norm1), block.qkv.weight, block.qkv.bias).split(proto.width)
                past[i][0].append(k)
                past[i][1].append(v)
                x = x + attend(block, *past[i], q)
                wide = ACTS[act](linear(layer_norm(x, block.norm2), block.widen.weight, block.widen.bias))
                x = x + linear(wide, block.narrow.weight, block.narrow.bias)
                outs[i].append(layer_norm(x, proto.norm) if i == len(proto.blocks) - 1 else x)
        return outs

    return over_rows(run, drives)


def torch_module(proto: Any, drives: Tensor, control: bool = False) -> list[Tensor]:
    """Of the registered example: Linear, Tanh, Linear."""

    def run(row: list[Row]) -> list[list[Row]]:
        first, _, last = proto.module
        act = sigmoid if control else tanh
        return [[linear(act(linear(x, first.weight, first.bias)), last.weight, last.bias) for x in row]]

    return over_rows(run, drives)


def torch_cell(proto: Any, drives: Tensor, control: bool = False) -> list[Tensor]:
    """Of the registered example: a ``nn.LSTMCell``."""

    def run(row: list[Row]) -> list[list[Row]]:
        n = proto.cell.hidden_size
        state, outs = (drives.new_zeros(n), drives.new_zeros(n)), []
        for x in row:
            state = lstm_tick(proto.cell, x, state, n, control)
            outs.append(state[0])
        return [outs]

    return over_rows(run, drives)


NAIVE: dict[str, Callable[..., list[Tensor]]] = {
    "aggregator": aggregator, "alif": alif, "conv": conv, "elementwise": elementwise, "gru": gru, "indrnn": indrnn,
    "leaky": leaky, "lif": lif, "lru": lru, "lstm": lstm, "mingru": mingru, "mlp": mlp, "rnn": rnn,
    "torch_cell": torch_cell, "torch_module": torch_module, "transformer": transformer,
}  # fmt: skip
