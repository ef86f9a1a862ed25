"""What runs inside a graph module: recurrences, layers, combinations of inputs, and any torch module or cell."""

from .activation import ACTIVATIONS as ACTIVATIONS
from .aggregator import Aggregator as Aggregator
from .alif import ALIF as ALIF
from .auto import Auto as Auto
from .conv import Conv as Conv
from .driven import Driven as Driven
from .elementwise import Elementwise as Elementwise
from .gru_stack import GRUStack as GRUStack
from .indrnn import IndRNN as IndRNN
from .leaky import Leaky as Leaky
from .lif import LIF as LIF
from .lru import LRU as LRU
from .lstm_stack import LSTMStack as LSTMStack
from .mingru import MinGRU as MinGRU
from .mlp import MLP as MLP
from .proto import Proto as Proto
from .proto import register_proto as register_proto
from .proto import registry as registry
from .rnn_stack import RNNStack as RNNStack
from .stack import Stack as Stack
from .torch_cell import TorchCell as TorchCell
from .torch_module import TorchModule as TorchModule
from .transformer import Transformer as Transformer
