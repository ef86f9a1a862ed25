"""Every error imprint raises: where it happened, what is wrong, what was expected, what came, how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ImprintError(Exception):
    """An error in five parts, so that it can be mended without reading imprint's source.

    Args:
        where: the object and place, for example ``"unit 'blocks.2' (Linear 784 -> 256)"``.
        what: one clause saying what is wrong.
        expected: what would have been right.
        got: what came instead.
        fix: what to do, as a command or a line of code.

    >>> print(ShapeError("unit 'fc'", "the input is too wide", expected="(batch, 4)", got="(2, 5)", fix="flatten"))
    ShapeError: unit 'fc': the input is too wide.
      expected: (batch, 4)
      got:      (2, 5)
      fix:      flatten
    """

    def __init__(
        self, where: str, what: str, *, expected: object = None, got: object = None, fix: object = None
    ) -> None:
        self.where, self.what, self.expected, self.got, self.fix = where, what, expected, got, fix
        super().__init__(where, what)

    def __str__(self) -> str:
        parts = (("expected", self.expected), ("got", self.got), ("fix", self.fix))
        lines = [f"{key + ':':<9} {value}" for key, value in parts if value is not None]
        return "\n  ".join([f"{type(self).__name__}: {self.where}: {self.what}.", *lines])


class ShapeError(ImprintError, ValueError):
    """A tensor has sizes that do not fit."""


class DtypeError(ImprintError, TypeError):
    """A tensor or object has the wrong type."""


class LabelError(ImprintError, ValueError):
    """Labels are outside their range, of the wrong kind, or missing."""


class ArgumentError(ImprintError, TypeError):
    """An option is unknown, missing, or contradicts another."""


class UnknownNameError(ImprintError, KeyError):
    """A name that nothing is registered under; the message lists near misses."""


class CoverageError(ImprintError, ValueError):
    """A parameter that nothing trains, two units train, or a unit that never runs."""


class StateError(ImprintError, RuntimeError):
    """The call is right but comes at the wrong time."""


class CaptureError(ImprintError, RuntimeError):
    """A tick cannot be held as a fixed list of kernels over fixed memory, or can no longer be replayed."""


class CompileError(ImprintError, RuntimeError):
    """A compiler is missing, or fails on what it was given."""


class StructureError(ImprintError, ValueError):
    """A step cannot be told as an eligibility trace: what moves what is not unit by unit, or not known."""


class NotCompiledError(StateError, ValueError):
    """A trace graph is asked for before there is one."""


class NestedCompileError(StateError, NotImplementedError):
    """A trace graph is compiled while another one is."""


class NonFiniteError(ImprintError, ArithmeticError):
    """A loss became NaN or infinite; the weights of the unit it names are as they were."""


class IsolationError(ImprintError, RuntimeError):
    """A gradient crosses a unit's boundary."""


class CheckpointError(ImprintError, ValueError):
    """A checkpoint does not fit or is damaged; nothing was loaded."""


class DataError(ImprintError, ValueError):
    """A data file is missing, damaged, or has another layout."""


class MissingExtraError(ImprintError, ImportError):
    """An optional package is not installed."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Near misses of `name` among `choices`, and the first two dozen of them.

    >>> did_you_mean("sigprp", ["sigprop", "local_ce"])
    "did you mean 'sigprop'? There are: local_ce, sigprop"
    """
    names = sorted(filter(None, choices))
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.6)
    more = f", and {len(names) - 24} more" if len(names) > 24 else ""
    there = f"There are: {', '.join(names[:24]) if names else 'none'}{more}"
    return f"did you mean {' or '.join(map(repr, near))}? {there}" if near else there
