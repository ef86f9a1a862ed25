"""The baseline, on the same code path; and no learning at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .rule import Rule, register_rule


@register_rule("backprop")
@dataclass(frozen=True)
class Backprop(Rule):
    r"""Backpropagation: units have no boundary, :math:`\Delta\theta = -\mathrm{opt}(\partial J/\partial\theta)`.

    Units keep an optimizer, clipping and monitors each, so that a comparison with a local rule changes nothing else.

    Reference: Rumelhart, Hinton & Williams, Learning representations by back-propagating errors (1986).
    Differs from the paper: nothing.
    """

    worlds: ClassVar[tuple[str, ...]] = ("layers", "graph")
    local: ClassVar[bool] = False
    allow_cross: ClassVar[bool] = True


@register_rule("frozen")
@dataclass(frozen=True)
class Frozen(Rule):
    """The unit runs and never learns; no gradient passes through it.

    Differs from the paper: there is none.
    """

    worlds: ClassVar[tuple[str, ...]] = ("layers", "graph")
    learns: ClassVar[bool] = False
