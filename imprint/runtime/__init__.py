"""What a rollout did, and how to do it again: recordings, plans, and the backends that run them."""

from . import backends as backends
from .backend import Backend as Backend
from .backend import Options as Options
from .backend import register_backend as register_backend
from .blueprint import Blueprint as Blueprint
from .cycle import Cycle as Cycle
from .events import Event as Event
from .events import PortOp as PortOp
from .events import Read as Read
from .learned import Learned as Learned
from .plan import Plan as Plan
from .recording import Recording as Recording
from .recording import record as record
from .timetable import DueSet as DueSet
from .timetable import Timetable as Timetable
