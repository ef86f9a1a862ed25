"""Blocks of ticks, compiled."""

from __future__ import annotations

from ..backend import register_backend
from ..compiled import Compiled


@register_backend("inductor")
class Inductor(Compiled):
    """Captures blocks of ticks and compiles each by torch's inductor; a Python loop runs them.

    A block is a tick where weights move at every tick, else as many ticks as weights rest, at most 16. Compiling takes
    seconds a due set, and is kept on disk by torch: a second process starts from there.
    """

    codegen = "inductor"
