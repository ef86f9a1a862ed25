"""Modules of a graph learn from the objectives they declare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import ArgumentError
from ..objectives import Head, Objective
from .rule import Rule, register_rule

FILLS = ("auto", "ce", "predict", None)


@register_rule("local")
@dataclass(frozen=True)
class Local(Rule):
    r"""Each module of a graph learns from what it declares, :math:`L_m = \sum_i w_i\,L_i`; others are filled in.

    A module with parameters and without a data objective would never learn, and a regulariser alone would drive it to
    zero. It gets a local classifier, :math:`\mathrm{CE}(M h + b, y)`, or predicts the next values of its sources,
    :math:`\|P h_t - s_{t+1}\|^2`.

    Args:
        fill: ``"ce"``, ``"predict"``, ``"auto"`` (``"ce"`` where the graph has a label target, else ``"predict"``), or
            None: such modules are left frozen and listed as orphans.

    Optimizer: Adam, lr 5e-4.

    Reference: Nokland & Eidnes, Training Neural Networks with Local Error Signals (2019), section 3.2, for the heads.
    Differs from the paper: one head a graph module, at each of its emissions.
    """

    worlds: ClassVar[tuple[str, ...]] = ("graph",)
    fill: str | None = "auto"

    def __post_init__(self) -> None:
        if self.fill not in FILLS:
            raise ArgumentError(
                "rule 'local'",
                "unknown fill=",
                expected=" | ".join(map(str, FILLS)),
                got=repr(self.fill),
                fix="fill='auto'",
            )

    def objective(self) -> Objective:
        """A head, where one is filled in."""
        return Head()

    def filling(self) -> str | None:
        """As chosen."""
        return self.fill
