"""One file a backend, registered where it is defined."""

from .cuda_graph import CudaGraph as CudaGraph
from .eager import Eager as Eager
from .inductor import Inductor as Inductor
