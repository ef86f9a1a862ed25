"""Loops with validation, checkpoints and exact resume."""

from .files import load_file as load_file
from .files import save_file as save_file
from .history import Epoch as Epoch
from .history import History as History
from .recipes import infer_num_classes as infer_num_classes
from .recipes import last_step_accuracy as last_step_accuracy
from .recipes import last_step_ce_loss as last_step_ce_loss
from .recipes import prepare_seq2static_classification as prepare_seq2static_classification
from .train_graph import train_graph as train_graph
from .train_model import train_model as train_model
