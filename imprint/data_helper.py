"""The loaders of the demonstrations, under the name the guide uses; they live in :mod:`imprint.data`."""

from .data import SequenceDataset as SequenceDataset
from .data import load_demo_dataset as load_demo_dataset
from .data import load_micro_step_demo_dataset as load_micro_step_demo_dataset
