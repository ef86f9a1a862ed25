"""Models: a signal and a chain of propagators behind one call."""

from .loop_back import ForwardLoopBack as ForwardLoopBack
from .loop_back import LoopBack as LoopBack
from .model import Forward as Forward
from .model import Model as Model
from .triangle import Triangle as Triangle
