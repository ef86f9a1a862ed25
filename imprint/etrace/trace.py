"""What a trace is: it takes blocks of ticks in, and gives gradients out."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..errors import ArgumentError
from .linearize import GroupBlock, Use
from .structure import HiddenGroup, HiddenParamOpRelation


class Gradient(NamedTuple):
    """Of one weight: ``[O, I]``, or ``[O]`` for a vector; and of its bias ``[O]``."""

    weight: Tensor
    bias: Tensor | None


class Trace:
    """Eligibility of every weight of one hidden group. A new kind is one subclass.

    Args:
        group: the hidden group.
        relations: its weights.
        rows: B.
        like: a tensor of the device and dtype of the states.
        dtype: of what is stored; that of the states if None.
    """

    small: ClassVar[bool] = False
    """It is made anew in a block at little cost."""

    def __init__(
        self, group: HiddenGroup, relations: list[HiddenParamOpRelation], rows: int, like: Tensor,
        dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        self.group, self.relations, self.rows = group, relations, rows
        self.dtype = dtype or like.dtype
        self.store: dict[str, Tensor] = self.zeros(like)

    def zeros(self, like: Tensor) -> dict[str, Tensor]:
        """What is stored, before the first tick; rows first."""
        raise ArgumentError(f"trace {type(self).__name__}", "it is not written", fix="write this method")

    def block(self, block: GroupBlock, signal: Tensor, valid: Tensor | None, instant: bool) -> list[Gradient]:
        r"""Take a block in; the gradients of its relations, one each.

        Args:
            block: the Jacobians of K ticks.
            signal: the learning signal :math:`L_t`, ``[K, R, N]``, or ``[K, R, N, S]`` for several states.
            valid: ``[K, R]``, ticks that rows have; None if they have all.
            instant: with the part that is of each tick alone, :math:`L_t \cdot df_t \otimes x_t`.
        """
        raise ArgumentError(f"trace {type(self).__name__}", "it is not written", fix="write this method")

    def past(self, signal: Tensor) -> list[Gradient]:
        """Gradients by what is stored now, for credit of the states as they are.

        Shape: signal ``[R, N]``, or ``[R, N, S]`` for several states.
        """
        raise ArgumentError(
            f"trace {type(self).__name__}", "it cannot be read at the edge of a window", fix="window=None, or D_RTRL"
        )

    def reset(self, rows: Tensor | None) -> None:
        """Forget, in all rows or in those of a mask."""
        for v in self.store.values():
            if rows is None:
                v.zero_()
            else:
                v.view(self.rows, -1).masked_fill_(rows[:, None], 0)

    @property
    def bytes(self) -> int:
        """Of what is stored."""
        return sum(v.numel() * v.element_size() for v in self.store.values())

    def by_path(self) -> dict[str, int]:
        """Bytes of each weight; what is of no weight alone counts for the states."""
        made: dict[str, int] = {}
        for key, v in self.store.items():
            number = key.partition(".")[0]
            path = self.relations[int(number)].path if number.isdigit() else ", ".join(self.group.hidden_paths)
            made[path] = made.get(path, 0) + v.numel() * v.element_size()
        return made


def signals(block: GroupBlock, signal: Tensor) -> tuple[Tensor, Tensor]:
    r"""Credit of every tick's states for all later losses of the block, :math:`c_j = L_j + D_{j+1}^T c_{j+1}`.

    Returns:
        c, like `signal`; and :math:`D_1^T c_1`, the credit of the states before the block.
    """
    decay, c = block.decay, signal[-1]
    each = [c]
    if block.states == 1:
        for j in range(len(signal) - 2, -1, -1):
            c = torch.addcmul(signal[j], decay[j + 1], c)
            each.append(c)
        return torch.stack(each[::-1]), decay[0] * c
    back = decay.transpose(-1, -2)
    for j in range(len(signal) - 2, -1, -1):
        c = signal[j] + (back[j + 1] @ c[..., None])[..., 0]
        each.append(c)
    return torch.stack(each[::-1]), (back[0] @ c[..., None])[..., 0]


def carried(block: GroupBlock) -> tuple[Tensor, Tensor]:
    r"""What is left of each tick at the block's end, :math:`q_j = D_K \cdots D_{j+1}`; and Q, of what was before."""
    decay = block.decay
    if block.states == 1:
        q = torch.ones_like(decay[0])
        each = [q]
        for j in range(len(decay) - 1, 0, -1):
            q = q * decay[j]
            each.append(q)
        return torch.stack(each[::-1]), q * decay[0]
    q = torch.eye(block.states, dtype=decay.dtype, device=decay.device).expand_as(decay[0])
    each = [q]
    for j in range(len(decay) - 1, 0, -1):
        q = q @ decay[j]
        each.append(q)
    return torch.stack(each[::-1]), q @ decay[0]


def product(weights: Tensor, use: Use) -> Gradient:
    """Sum of outer products ``weights ⊗ x`` over ticks and rows.

    Shape: weights ``[K, R P, O]``.
    """
    flat = weights.reshape(-1, weights.shape[-1])
    if use.x is None:
        return Gradient(flat.sum(0), None)
    return Gradient(flat.t() @ use.x.reshape(-1, use.x.shape[-1]), flat.sum(0) if use.call.bias is not None else None)


def add(a: Gradient | None, b: Gradient) -> Gradient:
    """Their sum."""
    if a is None:
        return b
    return Gradient(a.weight + b.weight, b.bias if a.bias is None else a.bias if b.bias is None else a.bias + b.bias)


def instantly(block: GroupBlock, signal: Tensor) -> list[Gradient]:
    r"""The part of each tick alone, :math:`\sum_t L_t \cdot df_t \otimes x_t`."""
    made = []
    for relation, uses in block.uses:
        total: Gradient | None = None
        for use in uses:
            total = add(total, product(relation.weigh(use.df, signal, block.states), use))
        made.append(total)
    return made  # type: ignore[return-value]
