"""What a unit emits, batch first."""

from __future__ import annotations

from torch import Tensor
from torch.utils._pytree import tree_flatten

from ...credit import Tree
from ...propagators import Propagator
from ...propagators.layer import LayerUnit


def features(prop: Propagator, out: Tree) -> tuple[Tensor, bool] | None:
    """The first floating tensor of `out`, detached and batch first, and whether its last dimension holds the channels.

    None where there is none. Half precision is widened to float32.
    """
    unit = prop.unit
    dim, last = (unit.batch_dim, unit.channels_last) if isinstance(unit, LayerUnit) else (0, False)
    v = next((v for v in tree_flatten(out)[0] if isinstance(v, Tensor) and v.is_floating_point()), None)
    if v is None or v.dim() <= dim:
        return None
    v = v.detach().movedim(dim, 0)
    return (v if v.itemsize >= 4 else v.float()), last
