"""One file a backend, registered where it is defined."""

from .eager import Eager as Eager
