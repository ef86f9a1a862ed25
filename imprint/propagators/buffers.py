"""Buffers of a model: lent out as copies, and put back after an error; those that nothing writes to stay uncopied."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

Key = tuple[nn.Module, str]


@contextmanager
def borrowed_buffers(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Run on copies of all buffers; what is written to them is forgotten.

    The copies may be part of a graph that outlives the block, so nothing is written back.
    """
    with Buffers(modules).borrowed():
        yield


class Buffers:
    """The buffers of `modules` and all modules in them.

    A buffer that went through a whole :meth:`kept_on_error` untouched counts as constant, and is not copied any more,
    while its module stays in the same mode and nobody writes into it. Running statistics never count as constant: their
    layer may only have been skipped. A buffer that is written to in some steps only, and not in the first, is copied
    from the step after its first change on.

    >>> norm = nn.BatchNorm1d(2)
    >>> with Buffers([norm]).borrowed():
    ...     _ = norm(torch.ones(3, 2))
    >>> norm.running_mean
    tensor([0., 0.])
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = [m for top in modules for m in top.modules() if m._buffers]
        self.constant: dict[Key, tuple[Tensor, int, bool]] = {}
        self.written: set[Key] = set()

    def of(self, modules: Sequence[nn.Module]) -> Buffers:
        """Those of some of the modules; what is found out about constants holds for both."""
        part = Buffers(modules)
        part.constant = self.constant
        return part

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Run on copies; what is written to them is forgotten."""
        saved = [(m, dict(m._buffers)) for m in self.modules]
        for m, k, b in self._changing():
            m._buffers[k] = b.clone()
        try:
            yield
        finally:
            for m, buffers in saved:
                m._buffers.update(buffers)

    @contextmanager
    def kept_on_error(self) -> Iterator[None]:
        """If an error leaves the block, running statistics and other buffers are as they were."""
        saved = [(m, k, b, b.clone(), _version(b)) for m, k, b in self._changing()]
        try:
            yield
        except BaseException:
            with torch.no_grad():
                for m, k, b, before, _ in saved:
                    m._buffers[k] = b.copy_(before)
            raise
        for m, k, b, before, version in saved:
            if (m, k) in self.written or isinstance(m, _NormBase):
                continue
            # writes through .data do not count as a new version: look at the values, once
            if m._buffers.get(k) is b and _version(b) == version and torch.equal(b, before):
                self.constant[m, k] = b, version, m.training
            else:
                self.written.add((m, k))

    def _changing(self) -> list[tuple[nn.Module, str, Tensor]]:
        """All that are not known to be constant."""
        found = []
        for m in self.modules:
            for k, b in m._buffers.items():
                if b is None:
                    continue
                known = self.constant.get((m, k))
                if known is None or known[0] is not b or known[1] != _version(b) or known[2] != m.training:
                    found.append((m, k, b))
        return found


def _version(b: Tensor) -> int:
    return -1 if b.is_inference() else b._version  # those made in inference mode are not counted
