"""imprint: layers of a torch model that learn while data flows forward."""

from . import credit as credit
from . import data as data
from . import diagnostics as diagnostics
from . import errors as errors
from . import functional as functional
from . import loss as loss
from . import managers as managers
from . import models as models
from . import monitors as monitors
from . import objectives as objectives
from . import propagators as propagators
from . import rules as rules
from . import signals as signals
from . import training as training
from . import utils as utils
from ._version import __version__ as __version__
from .managers import Manager as Manager
from .managers import attach as attach
from .objectives import Labels as Labels
from .propagators import no_learning as no_learning
from .rules import Frozen as Frozen
from .rules import Rule as Rule
from .rules import register_rule as register_rule
