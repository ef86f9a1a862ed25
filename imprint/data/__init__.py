"""Samples with labels: one small dataclass, its HDF5 layout, and files that are never half written."""

from .atomic import atomic_save as atomic_save
from .dataset import Data as Data
from .hdf5 import load_h5 as load_h5
from .hdf5 import save_h5 as save_h5
