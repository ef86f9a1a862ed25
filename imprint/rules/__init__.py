"""Named algorithms, one file each."""

from .backprop import Backprop as Backprop
from .backprop import Frozen as Frozen
from .drtp import DRTP as DRTP
from .forward_forward import ForwardForward as ForwardForward
from .local import Local as Local
from .local_ce import LocalCE as LocalCE
from .predict_input import PredictInput as PredictInput
from .predsim import PredSim as PredSim
from .rule import Rule as Rule
from .rule import register_rule as register_rule
from .rule import registry as registry
from .rule import resolve as resolve
from .sigprop import SigProp as SigProp
from .sim import Sim as Sim
