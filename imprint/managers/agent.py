"""Routes one unit's calls to its propagator, as the manager's phase says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from ..credit import Tree, detach
from ..errors import StateError
from ..objectives import Target
from ..propagators import Propagator
from ..propagators.layer import OBJECTIVE, Call, LayerUnit, Remembered
from ..rules import Rule
from .explain import Failed
from .hidden import check_hidden, check_returned
from .intercept import Attached, Follower, tensors_in


class Phase:
    """What the model's forward is being run for. One object, shared by all agents of a manager.

    ``off`` is inference; ``probe`` finds out what reaches what; ``context`` remembers each unit's context;
    ``learn`` learns; ``score`` asks every unit what it says about the label; in ``backward`` no unit may be called.
    """

    def __init__(self) -> None:
        self.name, self.target, self.share = "off", None, None
        self.agents: list[LayerAgent] = []
        self.leaves: list[tuple[LayerAgent, Tensor]] = []
        self.handed: list[tuple[LayerAgent, str, Tensor, int]] = []
        self.waiting: list[tuple[LayerAgent, Call]] = []
        self.keeps = False
        self.scores: dict[str, Tensor] = {}
        self.learns = False

    target: Target | None
    share: float | None

    @contextmanager
    def during(
        self, name: str, target: Target | None = None, share: float | None = None, learns: bool = False
    ) -> Iterator[None]:
        """Run the model for `name`.

        Units gather gradient if it `learns`; with a `share` they step after their last call.
        """
        self.name, self.target, self.share = name, target, share
        self.learns = learns
        for agent in self.agents:
            agent.calls = 0
            for follower in agent.followers:
                follower.waiting = 0
        torch.clear_autocast_cache()  # it may hold casts of weights made without gradient, or before an update
        try:
            yield
        finally:
            self.name, self.target, self.share = "off", None, None
            torch.clear_autocast_cache()

    def require_idle(self, where: str, attached: bool = True) -> None:
        """Refuse to start a pass inside another one, or with a model that is no longer attached.

        Raises:
            StateError: either of both.
        """
        if self.name != "off":
            raise StateError(
                where, "the model is in the middle of a forward pass of this manager",
                fix="call it after manager.step has returned, and from one thread at a time",
            )  # fmt: skip
        if attached and not all(isinstance(a.unit.modules[0], Attached) for a in self.agents):
            raise StateError(where, "the model was detached from this manager", fix="attach it anew")

    def forget(self) -> None:
        """Drop what units remember of a context pass, and what waits for the end of a forward."""
        self.waiting = []
        for agent in self.agents:
            agent.stash = []


class LayerAgent:
    """One attached unit.

    Attributes:
        open: it has no boundary and learns from the task loss.
        frozen: it runs and does not learn.
        waits: it does not learn until it is its turn.
        speaks: its objective is made, so it may have scores for the classes.
        expected: calls in one forward pass, counted at bind; 0 before.
        input_changes, output_changes: somebody writes into what it gets, or into what it hands on.
    """

    def __init__(self, phase: Phase, unit: LayerUnit, prop: Propagator, rule: Rule, followers: list[Follower]) -> None:
        self.phase, self.unit, self.prop, self.rule, self.followers = phase, unit, prop, rule, followers
        self.open, self.frozen, self.speaks = not rule.local, not rule.learns, False
        self.waits = False
        self.calls = self.expected = 0
        self.stash: list[Remembered] = []
        self.seen: tuple[tuple[int, ...], ...] = ()
        self.sample: Call | None = None
        self.input_changes = self.output_changes = False

    @property
    def learns(self) -> bool:
        """Is there anything in it to learn: a rule that does, and a weight that wants gradient and is not excluded?"""
        own = [p for k, p in self.unit.parameters().items() if not k.startswith(OBJECTIVE)]
        still = not self.rule.trains_weights and not self.open
        return self.rule.learns and (still or any(p.requires_grad for p in own))

    @property
    def rests(self) -> bool:
        """Does it run without learning for now: frozen, or another unit's turn?"""
        return self.frozen or self.waits

    @property
    def learns_alone(self) -> bool:
        """Does it learn from a batch without targets?"""
        objective = self.unit.objective
        return self.learns and not (self.frozen or self.open or objective.needs_labels)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the unit; everything that enters and leaves it is detached, unless it is open."""
        if not self.open:
            args, kwargs = detach((args, kwargs))
        try:
            out = getattr(self, "_" + self.phase.name)(Call(args, kwargs))
        except (RuntimeError, ValueError, IndexError) as error:
            self._explain(error, args, kwargs)
            raise
        self.calls += 1
        for follower in self.followers:
            follower.expect(out)
        if self.phase.name == "learn":
            for probe in self.prop.probes:
                probe.emitted(self.prop, out, self.phase.target or Target())
        return out

    def _off(self, call: Call) -> Tree:
        if self.open:
            return self.unit.call(self.prop.params, call)
        with torch.no_grad():
            return self.unit.call(self.prop.params, call)

    def _probe(self, call: Call) -> Tree:
        objective = self.unit.objective
        if not self.calls and self.sample is None and (objective.needs_context or objective.needs_synapses):
            self.sample = Call(_copy(call.args), _copy(call.kwargs))
        if not self.open:
            check_hidden(f"unit {self.prop.name!r}", "it is given", (call.args, call.kwargs))
        for v in tree_flatten((call.args, call.kwargs))[0]:
            if isinstance(v, Tensor):
                self.phase.handed.append((self, "input_changes", v, v._version))
        if not self.seen:
            self.seen = tuple(v.shape for v in tree_flatten((call.args, call.kwargs))[0] if isinstance(v, Tensor))
        if self.open:
            out = self.unit.call(self.prop.params, call)
            self.phase.leaves.extend((self, v) for v in tree_flatten(out)[0] if _floating(v))
            return out

        def leaf(v: Any) -> Any:
            if not _floating(v):
                return v
            v = v.detach().requires_grad_()
            self.phase.leaves.append((self, v))
            out = v.clone()
            self.phase.handed.append((self, "output_changes", out, out._version))
            return out

        again = Call(_copy(call.args), _copy(call.kwargs))
        out = self._off(call)
        check_returned(f"unit {self.prop.name!r}", out, lambda: self.unit.call(self.prop.params, again))
        return tree_map(leaf, out)

    def _context(self, call: Call) -> Tree:
        objective = self.unit.objective
        if not self.speaks or (self.rests and self.phase.learns) or not objective.needs_context:
            with torch.no_grad():
                return self.unit.call(self.prop.params, call)
        if self.phase.learns and not objective.uses_data:
            self._count()
            if self.phase.keeps and self.input_changes:
                call = Call(_copy(call.args), _copy(call.kwargs))
            (_, out), _ = self.prop.tick((), Call((), {}, Remembered(call)), self.phase.target)
            self._step_after_last_call()
            return _copy(out) if self.output_changes and self.phase.keeps else out
        kept = Call(_copy(call.args), _copy(call.kwargs)) if self.input_changes else call
        graph = self.phase.learns and self.unit.context_mode == "kept"
        with torch.set_grad_enabled(graph):
            out = self.unit.call(self.prop.params, call)
        if not self.phase.learns or self.unit.context_mode == "held":
            self.stash.append(Remembered(kept, _copy(out)))
            return out
        shared = [] if self.input_changes else [*call.args, *call.kwargs.values()]
        shared += [] if self.output_changes or not graph else [out]
        versions = tuple((v, v._version) for part in shared for v in tensors_in(part))
        self.stash.append(Remembered(kept, out if graph else None, versions))
        return _copy(detach(out)) if self.output_changes else detach(out)

    def _learn(self, call: Call) -> Tree:
        if self.open:
            return self.unit.call(self.prop.params, call)
        objective, target = self.unit.objective, self.phase.target
        if objective.fits and self.speaks:
            return self._fit(call)
        if not self._learns_now() or not objective.uses_data:
            return self._off(call)
        self._count()
        if self.input_changes and (self.phase.keeps or objective.needs_error):
            call = Call(_copy(call.args), _copy(call.kwargs))
        if objective.needs_context:
            call = Call(call.args, call.kwargs, self._recall())
        if objective.needs_error:
            return self._wait(call)
        (out, _), _ = self.prop.tick((), call, target)
        self._step_after_last_call()
        return _copy(out) if self.output_changes and self.phase.keeps else out

    @torch.no_grad()
    def _fit(self, call: Call) -> Tree:
        """Run, and let the objective take in what came out."""
        target = self.phase.target or Target()
        out = self.unit.call(self.prop.params, call)
        if not self.rests and (target.y is not None or not self.unit.objective.needs_labels):
            loss = self.unit.objective.fit(self.unit.view((out, None), call, target))
            self.prop.check(loss)
            for probe in self.prop.probes:
                probe.learned(self.prop, call, (out, None), target, loss)
        return out

    def _wait(self, call: Call) -> Tree:
        """Run with a graph that waits for the error of the model's output."""
        with torch.enable_grad():
            ran = self.unit.forward(self.prop.params, call)
        self.phase.waiting.append((self, Call(call.args, call.kwargs, call.context, ran)))
        return _copy(detach(ran[0])) if self.output_changes else detach(ran[0])

    def _backward(self, call: Call) -> Tree:
        raise StateError(
            f"unit {self.prop.name!r}", "it is called during the task's backward pass",
            fix="activation checkpointing must lie within a unit, or beside units; not around one",
        )  # fmt: skip

    def _learns_now(self) -> bool:
        has = self.phase.target is not None and self.phase.target.y is not None
        return bool(self.prop.optimizers) and not self.rests and (has or not self.unit.objective.needs_labels)

    def _count(self) -> None:
        if self.expected and self.calls >= self.expected:
            raise StateError(
                f"unit {self.prop.name!r}", "it is called more often than when it was bound",
                expected=f"{self.expected} calls in one forward pass", got=self.calls + 1,
                fix="call manager.bind with an input that makes the most calls",
            )  # fmt: skip

    def _step_after_last_call(self) -> None:
        if self.calls + 1 == self.expected and self.phase.share is not None:
            self.prop.update(self.phase.share)

    def _score(self, call: Call) -> Tree:
        context = self.stash[self.calls] if self.calls < len(self.stash) else None
        with torch.no_grad():
            out = self.unit.call(self.prop.params, call)
        if self.speaks:
            pair = (out, None if context is None else context.out)
            scores = self.unit.scores(pair, Call(call.args, call.kwargs, context), self.phase.target or Target())
            if scores is not None:
                before = self.phase.scores.get(self.prop.name)
                self.phase.scores[self.prop.name] = scores if before is None else before + scores
        return out

    def _recall(self) -> Remembered:
        if self.calls >= len(self.stash):
            raise StateError(
                f"unit {self.prop.name!r}", "it was not called in the context pass",
                fix="let the model call the same layers whatever the input; or start the stream with context_at=",
            )  # fmt: skip
        remembered, self.stash[self.calls] = self.stash[self.calls], _FORGOTTEN
        if any(v._version != version for v, version in remembered.versions):
            raise StateError(
                f"unit {self.prop.name!r}", "its context was written into in place, which was not so at bind",
                fix="call manager.bind(x, y) again, in the state in which the model writes in place",
            )  # fmt: skip
        return remembered

    def _explain(self, error: Exception, args: Any, kwargs: Any) -> None:
        """Name the unit in a complaint of torch's about what it was given."""
        seen = self.seen if self.expected else None
        own, context = self.unit.weights()[0].dtype, self.phase.name == "context"
        Failed(self.prop.name, tuple(tensors_in((args, kwargs))), own, seen, self.calls > 0, context).explain(error)


_FORGOTTEN = Remembered(Call((), {}))


def _floating(v: Any) -> bool:
    return isinstance(v, Tensor) and v.is_floating_point()


def _copy(tree: Tree) -> Tree:
    return tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, tree)
