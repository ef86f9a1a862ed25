"""Torch's complaints about sizes and dtypes, with the name of the unit they come from."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DtypeError, ImprintError, ShapeError

SIZES = re.compile(r"shape|size|dimension|channels|elements|features|length")
DTYPES = re.compile(r"dtype|type \(|scalar type|not implemented for '(Byte|Char|Int|Long|Short|Bool)'")


@dataclass(frozen=True)
class Failed:
    """The call of a unit that failed.

    Attributes:
        unit: its name.
        tensors: what it was given.
        own: dtype of its weights.
        seen: shapes it was given at bind; None before.
        again: it was called before in this forward pass.
        context: the context pass called it.
    """

    unit: str
    tensors: tuple[Tensor, ...]
    own: torch.dtype
    seen: tuple[tuple[int, ...], ...] | None
    again: bool
    context: bool

    def explain(self, error: Exception) -> None:
        """Raise an error that says more than `error`, if this call's sizes or dtypes are the reason.

        Raises:
            DtypeError, ShapeError: name the unit; what torch says is in them.
        """
        if isinstance(error, ImprintError):
            locate(error, f"unit {self.unit!r}")
            return
        kinds = list(dict.fromkeys(v.dtype for v in self.tensors))
        if DTYPES.search(str(error)) and kinds and (self.own not in kinds or self.seen is None):
            raise self._dtype(kinds, error) from error
        shapes = [v.shape[1:] for v in self.tensors]
        differ = self.seen is None or shapes != [tuple(s[1:]) for s in self.seen]
        if SIZES.search(str(error)) and (differ or self.context):
            raise self._shape(differ, error) from error

    def _dtype(self, kinds: list[torch.dtype], error: Exception) -> DtypeError:
        where, says, got = f"unit {self.unit!r}", _first_line(error), ", ".join(map(str, kinds))
        if self.own in kinds:
            return DtypeError(where, "its input has a dtype that it does not take", got=got, fix=says)
        floats = [kind for kind in kinds if kind.is_floating_point]
        cast = f", or cast the model: model.to({floats[0]})" if floats else ""
        what = "its input has another dtype than its weights"
        return DtypeError(where, what, expected=self.own, got=got, fix=f"x.to({self.own}){cast}; {says}")

    def _shape(self, differ: bool, error: Exception) -> ShapeError:
        bound = [("batch", *s[1:]) for s in self.seen] if self.seen is not None and differ else None
        what, fix = "its input does not fit", "feed what the model was bound with"
        if self.context and not differ:
            what = "it does not run on the context, which has another number of rows than the data"
            fix = "give tensors one row a sample, [batch, ...]: what has no batch dimension passes unchanged"
        elif self.again:
            what = "it is called with inputs of different sizes, and its objective is made for the first"
            fix = "use a rule whose objective has no sizes (sigprop, sim), or make one unit of all that calls it"
        elif self.seen is None:
            fix = "feed what the model was made for"
        got = [tuple(v.shape) for v in self.tensors]
        return ShapeError(f"unit {self.unit!r}", what, expected=bound, got=got, fix=f"{fix}; {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return "torch says: " + str(error).split("\n")[0]


def locate(error: ImprintError, where: str) -> None:
    """Say which unit an error is about, if it does not.

    >>> error = ShapeError("cross entropy", "it does not fit")
    >>> locate(error, "unit 'fc'")
    >>> error.where
    "unit 'fc', cross entropy"
    """
    if "unit " not in error.where:
        error.where = f"{where}, {error.where}"
