"""The audit finds every leak by name, lets clean models pass, and leaves no trace."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import imprint
from imprint.diagnostics import audit_isolation
from imprint.diagnostics.graph_leaves import hidden_tensors, leaves_of, tensors_in
from imprint.errors import IsolationError
from imprint.objectives import Head, Mix, Objective

from references import nets

X, Y = torch.randn(6, 6), torch.tensor([0, 1, 2, 0, 1, 2])


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 3))


class Borrows(nn.Module):
    """Its forward reads another layer's weight."""

    def __init__(self, other: nn.Linear) -> None:
        super().__init__()
        self.own, self.others = nn.Linear(8, 8), [other.weight]

    def forward(self, x: Tensor) -> Tensor:
        return self.own(x) + self.others[0].mean()


class Keeps(nn.Linear):
    """It remembers its last output, graph and all."""

    memory: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.memory = super().forward(x)
        return self.memory


class Recalls(nn.Module):
    """It adds what another layer remembers."""

    def __init__(self, other: Keeps, detach: bool = False) -> None:
        super().__init__()
        self.own, self.other, self.detach = nn.Linear(8, 8), [other], detach

    def forward(self, x: Tensor) -> Tensor:
        memory = self.other[0].memory
        return self.own(x) + (memory.detach() if self.detach else memory)


@dataclass
class Aux:
    """A container that torch does not look into."""

    value: Tensor


class Hands(nn.Linear):
    """Besides its output it hands on a container, from some time on with a graph."""

    graph = False

    def forward(self, x: Tensor) -> tuple[Tensor, Aux]:
        out = super().forward(x)
        return out, Aux((out if self.graph else out.detach()).mean(1, keepdim=True))


class Takes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Hands(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, aux = self.first(x)
        return self.second(h) + aux.value


class Peeks(Head):
    """A local head whose loss has another unit's weight in it."""

    def __init__(self, others: list[Tensor]) -> None:
        super().__init__()
        self.others = others

    def forward(self, view: Any) -> Tensor:
        return super().forward(view) + self.others[0].square().mean()


@dataclass(frozen=True)
class Peeking(imprint.Rule):
    """Not registered: only for these tests."""

    name: ClassVar[str] = "peeking"
    others: Any = None

    def objective(self) -> Objective:
        return Peeks(self.others)


@dataclass(frozen=True)
class Declared(Peeking):
    """The same, but it says so."""

    allow_cross: ClassVar[bool] = True


def attached(model: nn.Module, rule: Any = "local_ce", **options: Any) -> imprint.Manager:
    return imprint.attach(model, rule, num_classes=3, **options)


def leaks(manager: imprint.Manager) -> list[tuple[str, str, str]]:
    return [(leak.unit, leak.tensor, leak.owner) for leak in audit_isolation(manager, X, Y).leaks]


def test_a_clean_model_passes_and_the_table_says_so() -> None:
    report = audit_isolation(attached(mlp()), X, Y, strict=True)
    assert report.ok and report.leaks == ()
    assert repr(report).splitlines() == [
        "unit  rule      leaves reached  crossing",
        "----  --------  --------------  ----------------------------",
        "0     local_ce  4 of 4          none",
        "2     local_ce  4 of 4          none",
        "4     local_ce  4 of 4          none",
        "5     local_ce  2 of 2          it learns from the task loss",
        "task  -         0 of 0          none",
        "isolated",
    ]
    assert report.rows[0].reached == ("0.weight", "0.bias", "objective:linear.weight", "objective:linear.bias")


def test_a_module_that_reads_another_units_weight() -> None:
    model = mlp()
    model[2] = Borrows(model[0])
    manager = attached(model)
    assert leaks(manager) == [("2", "parameter '0.weight'", "0")]
    with pytest.raises(IsolationError) as error:
        audit_isolation(manager, X, Y, strict=True)
    assert str(error.value).splitlines()[0] == "IsolationError: unit '2': a gradient crosses its boundary (1 in all)."
    assert "parameter '0.weight' of '0', through 'others' of '2'" in str(error.value)
    assert "2     local_ce  4 of 4          parameter '0.weight' of '0', through 'others' of '2'" in repr(
        audit_isolation(manager, X, Y)
    )


def test_a_module_that_keeps_its_graph_for_another() -> None:
    model = mlp()
    model[0] = Keeps(6, 8)
    model[2] = Recalls(model[0])
    report = audit_isolation(attached(model), X, Y)
    assert sorted((k.unit, k.tensor, k.owner) for k in report.leaks) == [
        ("2", "parameter '0.bias'", "0"),
        ("2", "parameter '0.weight'", "0"),
    ]
    assert {k.through for k in report.leaks} == {"'memory' of '0'"}
    model = mlp()
    model[0] = Keeps(6, 8)
    model[2] = Recalls(model[0], detach=True)
    assert audit_isolation(attached(model), X, Y).ok


def test_a_library_that_forgot_to_detach_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = attached(mlp()).bind(X, Y)
    for place in ("imprint.managers.agent", "imprint.propagators.propagator", "imprint.credit.protocol"):
        monkeypatch.setattr(f"{place}.detach", lambda tree: tree)
    found = {(leak.unit, leak.owner) for leak in audit_isolation(manager, X, Y).leaks}
    assert found == {("0", ""), ("2", ""), ("2", "0"), ("4", ""), ("4", "0"), ("4", "2")} | {
        ("task", unit) for unit in ("0", "2", "4")
    }


def test_a_graph_kept_outside_of_all_modules() -> None:
    shelf: list[Tensor] = []

    class Shelves(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            shelf[:] = [*shelf, out][-2:]
            return out + shelf[0].mean()

    model = nn.Sequential(Shelves(6, 8), nn.Tanh(), Shelves(8, 8), nn.Linear(8, 3))
    report = audit_isolation(attached(model, layers=["0", "2"]), X, Y)
    assert {(k.unit, k.owner, k.through) for k in report.leaks} == {("2", "0", "")}


def test_an_objective_with_another_units_parameter() -> None:
    model = mlp()
    manager = attached(model, {"0": "local_ce", "2": Peeking(others=[model[0].weight]), "4": "local_ce"})
    assert leaks(manager) == [("2", "parameter '0.weight'", "0")]
    manager.detach()
    manager = attached(model, {"0": Peeking(others=[model[5].weight]), "2": "local_ce", "4": "local_ce"})
    assert leaks(manager) == [("0", "parameter '5.weight'", "task")]


def test_an_objective_with_a_tensor_that_is_no_parameter() -> None:
    stray = torch.randn(2, 3, requires_grad=True)
    model = mlp()
    manager = attached(model, {"0": Peeking(others=[stray]), "2": "local_ce", "4": "local_ce"})
    report = audit_isolation(manager, X, Y)
    assert [str(k) for k in report.leaks] == [
        "a tensor (2, 3) that is no parameter, through 'others' of 'objective of 0'"
    ]


def test_an_output_that_carries_a_graph() -> None:
    manager = attached(Takes(), layers=["first"])
    assert audit_isolation(manager, X, Y).ok
    manager.model.first.graph = True  # it would have been refused at bind
    report = audit_isolation(manager, X, Y)
    assert sorted((k.unit, k.tensor.split(":")[0], k.owner) for k in report.leaks) == [
        ("first", "what follows it", ""),
        ("task", "parameter 'first.bias'", "first"),
        ("task", "parameter 'first.weight'", "first"),
    ]


def test_a_rule_that_declares_it_may_cross() -> None:
    model = mlp()
    manager = attached(model, {"0": "local_ce", "2": Declared(others=[model[0].weight]), "4": "local_ce"})
    report = audit_isolation(manager, X, Y, strict=True)
    assert report.ok and report.rows[1].note.startswith("parameter '0.weight' of '0'")
    assert report.rows[1].note.endswith("(allow_cross)")


def test_backprop_is_let_through_by_declaration() -> None:
    report = audit_isolation(attached(mlp(), "backprop"), X, Y, strict=True)
    notes = {row.note for row in report.rows if row.unit != "task"}
    assert report.ok and notes == {"it learns from the task loss across boundaries (allow_cross)"}
    assert all(len(row.reached) == len(row.own) for row in report.rows)
    report = audit_isolation(attached(mlp(), {"0": "local_ce", "[24]": "backprop"}), X, Y, strict=True)
    assert report.ok and [row.note for row in report.rows[:2]] == ["", report.rows[1].note]


def test_units_that_do_not_learn_are_named() -> None:
    manager = attached(mlp(), {"0": imprint.Frozen(), "2": "local_ce", "4": "local_ce"})
    manager.freeze("4")
    report = audit_isolation(manager, X, Y)
    assert [row.note for row in report.rows] == ["it did not learn", "", "it did not learn", ""]


def test_a_step_in_which_nothing_learns_proves_nothing_and_says_so() -> None:
    manager = attached(mlp()).bind(X, Y)
    with imprint.no_learning():
        report = audit_isolation(manager, X, Y)
    assert repr(report).splitlines()[-1] == "nothing learned" and {row.note for row in report.rows[:4]} == {
        "it did not learn"
    }


def test_a_learned_context_is_a_unit_of_its_own() -> None:
    report = audit_isolation(attached(mlp(), "sigprop", learned=True), X, Y, strict=True)
    signal = report.rows[-1]
    assert signal.unit == "signal" and signal.reached == signal.own == ("signal:weight0",)


def test_a_unit_called_twice_and_a_nested_one() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block, self.head = (
                nn.Linear(6, 8),
                nn.Sequential(nn.Linear(8, 8), nn.Tanh()),
                nn.Linear(8, 3),
            )

        def forward(self, x: Tensor) -> Tensor:
            h = self.stem(x)
            return self.head(h + self.block(self.block(h)))

    report = audit_isolation(attached(Twice(), layers=["block"]), X, Y, strict=True)
    assert [(row.unit, len(row.reached), len(row.own)) for row in report.rows] == [("block", 4, 4), ("task", 4, 4)]


def test_an_excluded_weight_inside_a_unit_crosses_nothing() -> None:
    report = audit_isolation(attached(mlp(), exclude=r"2\.bias"), X, Y, strict=True)
    assert report.rows[1].own == ("2.weight", "objective:linear.weight", "objective:linear.bias")
    model = mlp()
    model[2] = Borrows(model[0])
    assert leaks(attached(model, exclude=r"0\.weight")) == [("2", "parameter '0.weight'", "0")]


def test_it_runs_in_training_mode_only() -> None:
    manager = attached(mlp()).bind(X, Y)
    manager.model.eval()
    with pytest.raises(imprint.errors.StateError):
        audit_isolation(manager, X, Y)
    manager.model.train()
    assert audit_isolation(manager, X, Y).ok


class Noisy(nn.Module):
    """All that a step may change: running statistics, dropout, several units."""

    def __init__(self) -> None:
        super().__init__()
        self.units = nn.Sequential(
            *(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2)) for _ in range(3))
        )
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.units(x))


def same(a: Any, b: Any) -> bool:
    """Bitwise, through dicts and lists."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(v, w) for v, w in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


@pytest.mark.parametrize(
    "rule", [*sorted(n for n, r in imprint.rules.registry.items() if "layers" in r.worlds), "learned"]
)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_it_leaves_no_trace(rule: str, accumulate: int) -> None:
    """State before and after are equal, gathered gradients too; a run with audits ends where one without does."""
    made = {"learned": True} if rule == "learned" else {}
    rule = "sigprop" if rule == "learned" else rule

    def run(audits: bool) -> dict[str, Any]:
        torch.manual_seed(3)
        manager = attached(Noisy(), rule, layers=r"units\.\d", accumulate=accumulate, **made)
        for step in range(5):
            x, y = torch.randn(6, 6), torch.randint(3, (6,))
            if audits:
                assert audit_isolation(manager, x, y).ok
            if audits and step:
                grads = [p.grad for p in manager.model.parameters()]
                before = copy.deepcopy(manager.state_dict()), manager.metrics(reset=False)
                audit_isolation(manager, x, y)
                assert same(before, (manager.state_dict(), manager.metrics(reset=False)))
                assert grads == [p.grad for p in manager.model.parameters()] == [None] * len(grads)
            manager.step(x, y)
        return manager.state_dict()

    assert same(run(False), run(True))


def test_a_failing_step_leaves_no_trace_either() -> None:
    manager = attached(Noisy(), layers=r"units\.\d", accumulate=2)
    manager.step(X, Y)
    before = copy.deepcopy(manager.state_dict())
    with pytest.raises(imprint.errors.NonFiniteError):
        audit_isolation(manager, X * float("nan"), Y)
    assert same(before, manager.state_dict())
    assert all(prop.diff is imprint.credit.eager and prop.probes for prop in manager.propagators.values())
    assert not any(m._forward_hooks for m in manager.model.modules())


def test_leaves_of() -> None:
    a, b, c = (torch.randn(3, requires_grad=True) for _ in range(3))
    assert {id(v) for v in leaves_of((a * b).sum() + a.exp().sum())} == {id(a), id(b)}
    assert leaves_of((a * b.detach() * torch.randn(3)).sum())[0] is a
    assert leaves_of(c)[0] is c and leaves_of(torch.ones(1)) == []
    with torch.no_grad():
        hidden = a * 2
    assert {id(v) for v in leaves_of((hidden * b).sum(), c * 2)} == {id(b), id(c)}
    h = a
    for _ in range(3000):  # a long graph needs no stack
        h = h + 1
    assert leaves_of(h)[0] is a


def test_tensors_in() -> None:
    assert tensors_in([{"a": X}, Aux(Y), "text", nn.Linear(2, 2)])[1] is Y

    class Slots:
        __slots__ = ("a", "b")

    class Items(dict[str, Any]):
        pass

    slots = Slots()
    slots.a = Items(deep=[{"x": X}, Aux(Y)])
    slots.a["itself"] = slots
    assert [(name, id(v)) for name, v in hidden_tensors((X, slots, 3))] == [("Slots", id(X)), ("Slots", id(Y))]
    assert hidden_tensors([X, {"a": Y}, nn.Linear(2, 2), torch.ones, torch, None]) == []


def test_the_audit_agrees_with_perturbation() -> None:
    """What it calls a leak moves when the later loss does; what it lets pass does not."""

    class Louder(imprint.rules.LocalCE):
        def objective(self) -> Objective:
            return Mix((3.0, super().objective()))

    def first_unit(rules: dict[str, Any], **options: Any) -> dict[str, Tensor]:
        torch.manual_seed(1)
        model = nets.chain("dense", True)
        manager = attached(model, rules, optimizer=lambda p: torch.optim.SGD(p, 0.1), **options)
        data = nets.batches("dense")
        assert audit_isolation(manager, *data[0]).ok
        for x, y in data:
            manager.step(x, y)
        return {k: v.clone() for k, v in model[0].state_dict().items()}

    local, louder = (
        {"0": "local_ce", "1": "local_ce", "2": "local_ce"},
        {"0": "local_ce", "1": "local_ce", "2": Louder()},
    )
    assert same(first_unit(local), first_unit(louder))
    crossing = {"0|1|2": "backprop"}
    scaled = lambda out, y: 3 * nn.functional.cross_entropy(out, y)
    assert not same(first_unit(crossing), first_unit(crossing, task_loss=scaled))
    assert same(first_unit(local), first_unit(local, task_loss=scaled))
