"""Steps of torch's optimizers as maths over their own state, for blocks of ticks that are captured."""

from .adam import Adam as Adam
from .maths import Maths as Maths
from .maths import register_optimizer as register_optimizer
from .rmsprop import RMSprop as RMSprop
from .sgd import SGD as SGD
from .steps import Steps as Steps
