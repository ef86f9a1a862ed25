"""Slow and plain: statistics and orders of sequences, one number at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def moments(x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each feature (dimension 2) over valid ticks, by two passes over a list."""
    means, stds = [], []
    for d in range(x.shape[2]):
        values = []
        for n in range(len(x)):
            for t in range(x.shape[1] if lengths is None else int(lengths[n])):
                values += x[n, t, d].flatten().tolist()
        mean = sum(values) / len(values)
        means.append(mean)
        stds.append((sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5)
    return torch.tensor(means, dtype=torch.float64), torch.tensor(stds, dtype=torch.float64)


def blocks_of_order(order: list[int], block: int, buffer: int, count: int) -> bool:
    """Is this order made of pieces of `buffer` whole blocks, all blocks once?"""
    blocks = -(-count // block)
    sizes = [min(block, count - b * block) for b in range(blocks)]
    seen: set[int] = set()
    at = 0
    while at < count:
        piece: set[int] = set()
        rows = 0
        for _ in range(min(buffer, blocks - len(seen))):
            new = next((order[i] // block for i in range(at, count) if order[i] // block not in seen | piece), None)
            if new is None:
                return False
            piece.add(new)
            rows += sizes[new]
        if {r // block for r in order[at : at + rows]} != piece:
            return False
        seen |= piece
        at += rows
    return sorted(order) == list(range(count))
