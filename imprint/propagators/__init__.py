"""What runs a layer and lets it learn while data flows forward."""

from ..functional import propagators as functional  # noqa: F401
from . import signals as signals
from .learn import Learn as Learn
from .learn import Loss as Loss
from .other import Fixed as Fixed
from .other import Forward as Forward
from .other import Identity as Identity
from .probe import Probe as Probe
from .propagator import Propagator as Propagator
from .switch import learning_enabled as learning_enabled
from .switch import no_learning as no_learning
