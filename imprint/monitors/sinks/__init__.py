"""Where the numbers of a run go, one file each."""

from .csv import CSV as CSV
from .live import Live as Live
from .sink import Sink as Sink
from .tensorboard import TensorBoard as TensorBoard
