"""Loops with validation, checkpoints and exact resume."""

from .files import load_file as load_file
from .files import save_file as save_file
from .history import Epoch as Epoch
from .history import History as History
from .train_model import train_model as train_model
