"""Runs of one rule with several seeds, as one row of the table."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Values = Sequence[float]


@dataclass(frozen=True)
class Row:
    """All runs of one rule.

    Args:
        label: what tables call it.
        runs: that came to their end.
        failed: those that were refused, stopped or failed.
    """

    label: str
    runs: list[dict[str, Any]]
    failed: list[dict[str, Any]]

    def values(self, key: str) -> list[float]:
        """One number a run; those without it are left out."""
        found = (run.get(key) for run in self.runs)
        return [sum(v) if isinstance(v, list) else v for v in found if v is not None]

    @property
    def steadiest(self) -> str:
        """Which seconds to compare: the processor's, which other programs hardly touch; of CUDA runs the clock's."""
        cuda = any(run["settings"]["device"].startswith("cuda") for run in self.runs)
        return "seconds" if cuda else "processor seconds"

    @property
    def curve(self) -> list[float]:
        """Mean test accuracy after each epoch."""
        return [statistics.fmean(values) for values in zip(*(run["curve"] for run in self.runs), strict=True)]

    @property
    def layers(self) -> dict[str, float]:
        """Mean accuracy of the linear readout of each unit."""
        return self._by_unit(lambda run: run["layers"])

    @property
    def cosines(self) -> dict[str, float]:
        """Mean cosine of each unit over all epochs and runs."""
        return self._by_unit(lambda run: {k: mean(v) for k, v in run["cosine"].items() if mean(v) is not None})

    def _by_unit(self, of: Any) -> dict[str, float]:
        found: dict[str, list[float]] = {}
        for run in self.runs:
            for unit, value in of(run).items():
                found.setdefault(unit, []).append(value)
        return {unit: statistics.fmean(values) for unit, values in found.items()}

    @property
    def reason(self) -> str:
        """Why there is no figure, or not for all seeds; empty if there is."""
        if not self.failed:
            return ""
        first = self.failed[0]
        kind: str = next(k for k in ("refused", "failed", "stopped") if k in first)
        told = first[kind]
        lines = told["message"].split("\n")
        if kind == "failed":
            return f"failed{self._some()}: {told['error']}: {lines[0]}"
        kind = kind if kind == "refused" else f"stopped in epoch {told['epoch']}"
        return f"{kind}{self._some()}: {lines[0].removeprefix(told['error'] + ': ').rstrip('.')}"

    def _some(self) -> str:
        return f", {len(self.failed)} of {len(self.failed) + len(self.runs)} seeds" if self.runs else ""


def mean(values: Iterable[float | None]) -> float | None:
    """Of those that are there.

    >>> mean([0.5, None, 1.0]), mean([])
    (0.75, None)
    """
    found = [v for v in values if v is not None]
    return statistics.fmean(found) if found else None


def spread(values: Values, scale: float = 1, digits: int = 2) -> str:
    """Mean ± standard deviation of the sample (n - 1); of one value, the value.

    >>> spread([0.5, 0.7], 100), spread([3.0], digits=1), spread([])
    ('60.00 ± 14.14', '3.0', '')
    """
    if not values:
        return ""
    middle = f"{scale * statistics.fmean(values):.{digits}f}"
    return f"{middle} ± {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else middle


def rows_of(labels: Iterable[str], found: Iterable[dict[str, Any]]) -> list[Row]:
    """One row a label, in this order; labels without any run are left out."""
    by: dict[str, list[dict[str, Any]]] = {}
    for run in found:
        by.setdefault(run["settings"]["rule"], []).append(run)
    return [
        Row(label, [r for r in by[label] if "accuracy" in r], [r for r in by[label] if "accuracy" not in r])
        for label in labels
        if label in by
    ]
