"""The port graph: multi-rate modules, ports, edges, and the rollout that drives them."""

from . import masks as masks
from .edge import Edge as Edge
from .graph import Graph as Graph
from .masked_linear import MaskedLinear as MaskedLinear
from .module import Module as Module
from .ports import InPort as InPort
from .ports import InPortGroup as InPortGroup
from .ports import Nodes as Nodes
from .ports import PortRef as PortRef
from .ports import Ports as Ports
from .rate import Clock as Clock
from .rate import Rate as Rate
from .result import Result as Result
from .schedule import Schedule as Schedule
from .source import Source as Source
