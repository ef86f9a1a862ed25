"""Who calls the propagators, and when: attached models, and presets for hand-wired chains."""

from .attach import attach as attach
from .graph_manager import GraphManager as GraphManager
from .intercept import detach as detach
from .manager import Manager as Manager
from .preset import Preset as Preset
