"""Samples with labels: images, vectors and sequences, their HDF5 layout, and files that are never half written."""

from .as_batches import Batches as Batches
from .as_batches import as_batches as as_batches
from .atomic import atomic_save as atomic_save
from .collate import collate as collate
from .collate import pad as pad
from .dataset import Data as Data
from .demo import load_demo_dataset as load_demo_dataset
from .demo import load_micro_step_demo_dataset as load_micro_step_demo_dataset
from .hdf5 import load_h5 as load_h5
from .hdf5 import save_h5 as save_h5
from .images import as_rows as as_rows
from .sequence_h5 import save_sequences_h5 as save_sequences_h5
from .sequences import SequenceDataset as SequenceDataset
from .table import Table as Table
