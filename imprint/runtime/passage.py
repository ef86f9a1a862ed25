"""One block without learning, and the way back through it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..graph.plain import run_components
from ..graph.rollout import Rollout
from ..propagators.buffers import Buffers
from .blockrun import BlockRun, ring_name
from .store import Store, write_all


class Forward:
    """One block without learning, on fixed tensors.

    Args:
        parts: runners by components.
        run: a rollout for which it stands.
        start, stop: the block within it.
        masked: rows end at ticks of their own.
    """

    def __init__(
        self, parts: list[list[Any]], run: Rollout, start: int, stop: int, masked: bool, store: Store, counter: Tensor
    ) -> None:
        self.parts, self.run, self.start, self.stop, self.masked = parts, run, start, stop, masked
        self.store, self.counter = store, counter

    def block(self) -> BlockRun:
        """The block as the engine sees it."""
        ticks = self.stop - self.start
        index = self.counter if ticks == 1 else self.counter + torch.arange(ticks, device=self.counter.device)
        return BlockRun(self.run, self.store, index, self.start, self.stop, self.masked)

    def through(self, run: BlockRun) -> None:
        """Take it through its ticks."""
        run.begin(self.start, self.stop)
        run_components(run, self.parts, self.start, self.stop)

    def __call__(self, *_: Any) -> tuple[()]:
        """Run the block, and write what it leaves into the fixed tensors."""
        with torch.no_grad():
            run = self.block()
            self.through(run)
            run.end(cut=True)
            run.show()
            write_all(run.writes(), self.store.held.values())
        return ()


class Backward(Forward):
    """Runs a block again, and takes what is wanted of its emissions and of the state after it back to the weights and
    the state before it.

    Args:
        params: weights, by name.

    Attributes:
        reached: names of the weights that it reaches.
        leans: by name of what is kept and of each state, the names of weights and earlier states that it depends on.
    """

    def __init__(self, params: dict[str, Tensor], *args: Any) -> None:
        super().__init__(*args)
        self.params = params
        self.reached: set[str] = set()
        self.leans: dict[str, set[str]] = {}
        self.buffers = Buffers([self.run.graph])

    def __call__(self, *_: Any) -> tuple[()]:
        """Add to the gradients, and put what is wanted of the state before in place of that of the state after."""
        store, run = self.store, self.block()
        leaves = run.leaves()
        with torch.enable_grad(), self.buffers.borrowed():
            self.through(run)
            run.end(cut=False)
        kept = [(name, ticks, v) for name, (ticks, v) in run.emissions.items() if v.requires_grad]
        ends = [(name, v) for name, v in run.named() if v.requires_grad]
        learned = {k: p for k, p in self.params.items() if p.requires_grad}
        inputs = [*learned.values(), *leaves.values()]
        if not self.leans:
            self._lean([*((name, v) for name, _, v in kept), *ends], [*learned, *leaves], inputs)
        found: tuple[Tensor | None, ...] = (None,) * len(inputs)
        wanted = [store[f"wanted of {ring_name(name)}"].index_select(0, run.at(ticks)) for name, ticks, _ in kept]
        wanted += [store[f"wanted of {name}"] for name, _ in ends]
        if wanted:
            outs = [v for _, _, v in kept] + [v for _, v in ends]
            found = torch.autograd.grad(outs, inputs, wanted, allow_unused=True)
        with torch.no_grad():
            self._write(learned, leaves, found)
        return ()

    def _lean(self, outs: list[tuple[str, Tensor]], names: list[str], inputs: list[Tensor]) -> None:
        """Found once, when nothing is being captured yet."""
        for name, v in outs:
            found = torch.autograd.grad(v.sum(), inputs, allow_unused=True, retain_graph=True)
            self.leans[name] = {k for k, g in zip(names, found, strict=True) if g is not None}

    def _write(self, learned: dict[str, Tensor], leaves: dict[str, Tensor], found: tuple[Tensor | None, ...]) -> None:
        todo = []
        for k, g in zip(learned, found, strict=False):
            if g is not None:
                self.reached.add(k)
                held = self.store.hold(f"gradient of {k}", g)
                todo.append((held, held + g))
        for name, g in zip(leaves, found[len(learned) :], strict=True):
            held = self.store[f"wanted of {name}"]
            todo.append((held, torch.zeros_like(held) if g is None else g))
        write_all(todo, self.store.held.values())
