"""Rewrites of captured blocks: the same numbers from fewer and larger ops."""

from .cleaning import clean as clean
from .lefts import one_left as one_left
from .reuse import reuse_rows as reuse_rows
from .rows import rows_at_once as rows_at_once
from .stacks import stacked as stacked
from .sums import port_sums as port_sums
