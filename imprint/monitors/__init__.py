"""Metrics of layers and models, and where they are sent."""

from . import loss as loss
from . import metrics as metrics
from . import sinks as sinks
from .metric import Metric as Metric
from .metric import register_monitor as register_monitor
from .metric import registry as registry
from .monitor import Group as Group
from .monitor import Monitor as Monitor
