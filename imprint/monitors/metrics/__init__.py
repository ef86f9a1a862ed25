"""Numbers per unit, one file each."""

from .accuracy import UnitAccuracy as UnitAccuracy
from .activations import Activations as Activations
from .alignment import Alignment as Alignment
from .grad_norm import GradNorm as GradNorm
from .linear_probe import LinearProbe as LinearProbe
from .loss import UnitLoss as UnitLoss
from .update_ratio import UpdateRatio as UpdateRatio
