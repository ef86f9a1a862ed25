"""The exact trace where a unit's memory and an output's effect are one number each, for ever."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import StructureError
from .deferred import require
from .linearize import GroupBlock
from .trace import Gradient, Trace, add, carried, product, signals


class SteadyTrace(Trace):
    r"""D-RTRL's trace, where :math:`D^t = a` and :math:`\partial h^t/\partial y^t = b` whatever the data.

    .. math:: \varepsilon^t_{oi} = \sum_{s \le t} a^{t-s}\, b\, x^s_i

    is the same for every output o: one row of it is stored. Leaky integrators and neurons without a reset are such.

    Memory: B · I numbers a weight, one a row for a bias or vector.
    """

    def zeros(self, like: Tensor) -> dict[str, Tensor]:
        """``[R P, I]`` a weight, ``[R P]`` a bias or vector."""
        made = {}
        for i, r in enumerate(self.relations):
            if r.op == "linear":
                made[f"{i}.weight"] = like.new_zeros(self.rows * r.positions, r.inputs, dtype=self.dtype)
            if r.op == "vector" or r.bias:
                made[f"{i}.bias"] = like.new_zeros(self.rows * r.positions, dtype=self.dtype)
        return made

    def block(self, block: GroupBlock, signal: Tensor, valid: Tensor | None, instant: bool) -> list[Gradient]:
        """See :meth:`Trace.block`."""
        self._check(block)
        credit, past = signals(block, signal)
        left, whole = (v[..., 0] for v in carried(block))  # all units alike
        if not instant:
            credit = credit - signal
        made = self.past(past)
        for i, (relation, uses) in enumerate(block.uses):
            q, scale = (v.repeat_interleave(relation.positions, -1) for v in (left, whole))
            for use in uses:
                made[i] = add(made[i], product(relation.weigh(use.df, credit, 1), use))
            fresh = [use.df[..., 0] * q for use in uses]  # [K, R P]
            if f"{i}.weight" in self.store:
                rows = sum(torch.einsum("kr,kri->ri", f, use.x) for f, use in zip(fresh, uses, strict=True))
                self._move(f"{i}.weight", scale[:, None], rows)
            if f"{i}.bias" in self.store:
                self._move(f"{i}.bias", scale, sum(f.sum(0) for f in fresh))
        return made

    def _check(self, block: GroupBlock) -> None:
        """Refuse units that are not alike: a threshold, say, that no sample has passed."""
        for v in (block.decay, *(use.df for _, uses in block.uses for use in uses)):
            one = v[..., :1]
            require((v - one).abs() <= 1e-4 * one.abs(), ", ".join(self.group.hidden_paths), partial(self._other, v))

    def _other(self, v: Tensor) -> StructureError:
        return StructureError(
            f"hidden group {', '.join(self.group.hidden_paths)}", "its recurrence was one number in every "
            "sample, and is not here", expected=self.group.decay, got=f"{float(v.min())} to {float(v.max())}",
            fix="learner.compile(x, state) with a state as it is met in running",
        )  # fmt: skip

    def past(self, signal: Tensor) -> list[Gradient]:
        """See :meth:`Trace.past`."""
        made = []
        for i, relation in enumerate(self.relations):
            blame = relation.spread(signal)  # [R P, O]
            bias, weight = (self.store.get(f"{i}.{k}") for k in ("bias", "weight"))
            one = None if bias is None else blame.t() @ bias.to(blame.dtype)
            if weight is None:
                assert one is not None
                made.append(Gradient(one, None))
            else:
                made.append(Gradient(blame.t() @ weight.to(blame.dtype), one))
        return made

    def _move(self, key: str, scale: Tensor, more: Any) -> None:
        store = self.store[key]
        store.copy_(store.to(scale.dtype) * scale + more)
