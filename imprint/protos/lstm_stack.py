"""Long short-term memory in layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .proto import State, register_proto
from .stack import Stack, sequence_options, stack_layers, unstack_layers, weights


@register_proto("lstm", lambda: LSTMStack(hidden=4, layers=2))
class LSTMStack(Stack):
    r"""Layers of ``nn.LSTMCell``: :math:`c' = f c + i g, \; h' = o \tanh(c')`.

    Args:
        hidden: width of every layer.
        layers: how many, one upon the other.
        layernorm: normalise the drive and what each layer sends up, see :class:`~imprint.protos.stack.Stack`.
        reset_every: start anew every so many ticks of the module's own, before the step.

    Shape: drive ``[B, input_dim]``; state ``(h, c)``, ``[layers, B, hidden]`` each; each layer's output h
        ``[B, hidden]``.

    Raises:
        ArgumentError: an option is no positive integer.
        ShapeError: `layernorm` over a single unit or input, which would be a constant.

    >>> import torch
    >>> proto = LSTMStack(hidden=3)
    >>> proto.bind(5)
    3
    >>> (h, c), outs = proto.step(torch.zeros(4, 5), proto.init_state(4))
    >>> h.shape, c.shape, torch.equal(outs[0], h[0])
    (torch.Size([1, 4, 3]), torch.Size([1, 4, 3]), True)

    Reference: Hochreiter & Schmidhuber (1997), Long short-term memory; Gers et al. (2000) for the forget gate.
    Differs from the paper: no peepholes, two biases, as in torch.
    """

    def make_cell(self, input_dim: int, **kind: Any) -> nn.Module:
        """A ``nn.LSTMCell``."""
        return nn.LSTMCell(input_dim, self.hidden, **kind)

    def init_state(
        self, batch_size: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Zeros ``(h, c)``, ``[layers, B, hidden]`` each."""
        h = super().init_state(batch_size, device, dtype)
        return h, torch.zeros_like(h)

    def _split(self, state: State) -> Any:
        return list(zip(unstack_layers(state[0]), unstack_layers(state[1]), strict=True))

    def _join(self, states: list[Any]) -> State:
        h, c = zip(*states, strict=True)
        return stack_layers(list(h)), stack_layers(list(c))

    def _seen(self, state: Any) -> Tensor:
        return state[0]

    def _sequence(self, cell: nn.Module, x: Tensor, old: Any) -> tuple[Tensor, Any]:
        out, h, c = torch.lstm(x, [v[None] for v in old], weights(cell), *sequence_options())
        return out, (h[0], c[0])
