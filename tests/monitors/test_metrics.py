"""Every metric equals its definition computed by hand, and training with it is training without it, bit by bit."""

from __future__ import annotations

import copy
import math
import random
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import imprint
from imprint import loss as losses
from imprint import monitors, propagators
from imprint.errors import ArgumentError, NonFiniteError, UnknownNameError
from imprint.monitors.metric import Metric, make_metrics, registry
from imprint.monitors.metrics import (
    Alignment,
    GradNorm,
    LinearProbe,
    UnitLoss,
    UpdateRatio,
)

CLASSES = 3
CLIP = 0.05
UNITS = ("0", "2", "4")


def sgd(params: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, 0.3, momentum=0.9, weight_decay=0.01)


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3)
    )


def data(steps: int = 5, rows: int = 9) -> list[tuple[Tensor, Tensor]]:
    made = [(torch.randn(rows, 6), torch.randint(CLASSES, (rows,))) for _ in range(steps - 1)]
    return [*made, (torch.randn(4, 6), torch.tensor([2, 0, 1, 1]))]  # a ragged last batch


def length(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(v.detach().square().sum()) for v in tensors))


def angle(a: list[Tensor], b: list[Tensor]) -> float:
    return sum(float((u * v).sum()) for u, v in zip(a, b, strict=True)) / (length(a) * length(b))


def backprop(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    twin = copy.deepcopy(model)
    F.cross_entropy(twin(x), y).backward()
    return {n: p.grad for n, p in twin.named_parameters()}


def by_hand(model: nn.Sequential, batches: list[tuple[Tensor, Tensor]]) -> dict[str, dict[str, list[float]]]:
    """Local heads with SGD and clipping, without imprint; every figure of every step, some of them wrong on purpose."""
    blocks = [nn.Sequential(*model[i : i + 2]) for i in (0, 2, 4)]
    heads = [nn.Linear(b[0].out_features, CLASSES) for b in blocks]
    for p in (p for h in heads for p in h.parameters()):
        nn.init.zeros_(p)
    own = [[*b.parameters()] for b in blocks] + [[*model[6].parameters()]]
    all_params = [[*o, *h.parameters()] for o, h in zip(own, [*heads, nn.Identity()], strict=True)]
    optimizers = [sgd(params) for params in all_params]
    found: dict[str, dict[str, list[float]]] = {u: {} for u in (*UNITS, "task")}
    names = [f"{u}.{k}" for u in (*UNITS, "6") for k in ("weight", "bias")]
    alive = {u: torch.zeros(b[0].out_features, dtype=torch.bool) for u, b in zip(UNITS, blocks, strict=True)}
    for x, y in batches:
        right = dict(zip(names, backprop(model, x, y).values(), strict=True))
        shuffled = backprop(model, x, y.roll(1))
        h = x
        for i, unit in enumerate((*UNITS, "task")):
            out = blocks[i](h) if i < 3 else model[6](h)
            scores = heads[i](out) if i < 3 else out
            value = F.cross_entropy(scores, y)
            optimizers[i].zero_grad()
            value.backward()
            grads = [p.grad.clone() for p in all_params[i]]
            before = [p.detach().clone() for p in own[i]]
            nn.utils.clip_grad_norm_(all_params[i], CLIP)
            clipped = [p.grad.clone() for p in all_params[i]]
            optimizers[i].step()
            stepped = length([a.detach() - b for a, b in zip(own[i], before, strict=True)])
            mine = grads[: len(own[i])]
            bp, wrong = ([side[n] for n in names[2 * i : 2 * i + 2]] for side in (right, shuffled))
            defined = length(mine) > 0
            row = {
                "loss": value.item(),
                "grad_norm": length(grads), "grad_norm_clipped": length(clipped),
                "update_ratio": stepped / length(before), "update_ratio_after": stepped / length(own[i]),
                "alignment": angle(mine, bp) if defined else math.nan,
                "alignment_shuffled": angle(mine, wrong) if defined else math.nan,
                "right": float((scores.argmax(1) == y).sum()), "count": float(len(y)),
            }  # fmt: skip
            if i < 3:
                v = out.detach()
                row |= {"activation_mean": v.mean().item(), "activation_std": v.std(correction=0).item()}
                row |= {"activation_zeros": (v == 0).double().mean().item(), "std_unbiased": v.std().item()}
                alive[unit] |= (v != 0).any(0)
            h = out.detach()
            for key, number in row.items():
                found[unit].setdefault(key, []).append(number)
    for unit, seen in alive.items():
        found[unit]["dead"] = [1 - seen.double().mean().item()]
    return found


def mean(values: list[float]) -> float:
    defined = [v for v in values if not math.isnan(v)]
    return sum(defined) / len(defined)


@pytest.fixture
def double(same_start: None) -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def run() -> tuple[dict[str, dict[str, list[float]]], dict[str, dict[str, float]]]:
    """The same training by hand and by imprint."""
    torch.manual_seed(2)
    torch.set_default_dtype(torch.float64)
    try:
        model, batches = net(), data()
        with torch.no_grad():
            model[0].bias[:2] = -50.0  # two neurons that never fire
        expected = by_hand(copy.deepcopy(model), batches)
        manager = imprint.attach(
            model, "local_ce", layers=r"[0-5]", optimizer=sgd, grad_clip=CLIP,
            monitors=["loss", "accuracy", "grad_norm", "update_ratio", "activations", Alignment(every=1)],
        )  # fmt: skip
        for x, y in batches:
            manager.step(x, y)
        return expected, manager.metrics()
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("unit", [*UNITS, "task"])
@pytest.mark.parametrize(
    "metric,wrong",
    [
        ("loss", None), ("grad_norm", "grad_norm_clipped"), ("update_ratio", "update_ratio_after"),
        ("alignment", "alignment_shuffled"), ("activation_mean", None), ("activation_std", "std_unbiased"),
        ("activation_zeros", "dead"),
    ],
)  # fmt: skip
def test_a_metric_is_the_mean_of_what_is_computed_by_hand(run, unit: str, metric: str, wrong: str | None) -> None:
    expected, got = run
    if metric not in expected[unit]:
        assert metric not in got[unit]
        return
    assert got[unit][metric] == pytest.approx(mean(expected[unit][metric]), abs=1e-12, rel=1e-10)
    if len({round(v, 9) for v in expected[unit][metric]}) > 1:
        assert abs(got[unit][metric] - expected[unit][metric][-1]) > 1e-6  # the mean, not the last
    if wrong is not None and wrong in expected[unit] and got[unit][metric]:
        assert abs(got[unit][metric] - mean(expected[unit][wrong])) > 1e-7


def test_accuracy_counts_samples_and_dead_features_are_those_that_never_fire(run) -> None:
    expected, got = run
    for unit in (*UNITS, "task"):
        rows = expected[unit]
        assert got[unit]["accuracy"] == pytest.approx(sum(rows["right"]) / sum(rows["count"]), abs=1e-15)
        of_batches = mean([a / b for a, b in zip(rows["right"], rows["count"], strict=True)])
        assert abs(got[unit]["accuracy"] - of_batches) > 1e-4 or unit == "0"
    assert got["0"]["activation_dead"] == expected["0"]["dead"][0] == 0.25
    assert got["4"]["activation_dead"] == 0.0
    assert got["0"]["activation_zeros"] > 0.3


RULES: dict[str, dict[str, object]] = {
    "sigprop": {}, "local_ce": {}, "predsim": {}, "forward_forward": {}, "backprop": {}, "drtp": {},
}  # fmt: skip


class Mixed(nn.Module):
    """Dropout, running statistics, Python's random numbers, a frozen unit."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(6, 6)
        self.one = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3))
        self.two = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.3))
        self.out = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(self.frozen(x))
        return self.out(self.two(h) + h * (random.random() + np.random.rand()))  # noqa: NPY002


def everything(manager: imprint.Manager) -> dict[str, Tensor]:
    """Weights, heads, optimizer state and random numbers, flat."""
    flat: dict[str, Tensor] = {}

    def walk(path: str, value: object) -> None:
        if isinstance(value, Tensor):
            flat[path] = value.clone()
        elif isinstance(value, dict | list | tuple):
            for k, v in value.items() if isinstance(value, dict) else enumerate(value):
                walk(f"{path}.{k}", v)
        elif isinstance(value, int | float):
            flat[path] = torch.tensor(float(value))

    walk("", manager.state_dict())
    return flat


def train(rule: str, metrics: list[str | Metric], steps: int = 4, **options: object) -> dict[str, Tensor]:
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    model = Mixed()
    rules = {"frozen": imprint.Frozen(), "one": rule, "two": rule}
    manager = imprint.attach(model, rules, monitors=metrics, num_classes=CLASSES, **options)  # type: ignore[arg-type]
    for x, y in data(steps):
        manager.step(x, y)
        manager.metrics()
    assert all(p.grad is None for p in model.parameters())
    return everything(manager)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("rule", RULES)
def test_training_with_all_metrics_is_bitwise_training_without(rule: str) -> None:
    without, again = train(rule, []), train(rule, [])
    assert same(without, again) and len(without) > 30
    assert same(without, train(rule, [Alignment(every=1), *(n for n in registry if n != "alignment")]))


@pytest.mark.parametrize("name", registry)
def test_training_with_one_metric_is_bitwise_training_without(name: str) -> None:
    options = {"accumulate": 2, "grad_clip": 0.1}
    assert same(train("sigprop", [], **options), train("sigprop", [name], **options))


@pytest.mark.parametrize("draw", [lambda: torch.rand(1), random.random, np.random.rand])
def test_the_comparison_notices_a_metric_that_draws_a_random_number(draw: Callable[[], object]) -> None:
    class Noisy(Metric):
        name = "noisy"

        def emitted(self, prop, out, y) -> None:
            draw()

    assert not same(train("sigprop", []), train("sigprop", [Noisy()]))


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default or func is torch.ops.aten.equal.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["", *registry])
def test_no_metric_reads_the_device_during_a_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # on the CPU, and only there, torch's looks at the range of the labels
    monkeypatch.setattr(F, "one_hot", lambda y, classes: (y[..., None] == torch.arange(classes)).long())

    def reads(metrics: list[str]) -> int:
        manager = imprint.attach(Mixed(), "local_ce", layers=["one", "two"], exclude="frozen.*", monitors=metrics)
        batches = data(4)
        manager.step(*batches[0])
        with Reads() as counted:
            for x, y in batches:
                manager.step(x, y)
        with Reads() as read:
            manager.metrics()
        assert not metrics or name == "activations" or read.count == 0  # one transfer, no single numbers
        return counted.count

    assert reads([name] if name else []) == reads([])


def test_the_count_of_reads_notices_one() -> None:
    class Eager(Metric):
        name = "eager"

        def learned(self, prop, x, out, y, loss) -> None:
            float(loss)

    manager = imprint.attach(net(), "local_ce", monitors=[Eager()])
    plain = imprint.attach(net(), "local_ce", monitors=[])
    counts = []
    for each in (manager, plain):
        each.step(*data()[0])
        with Reads() as counted:
            each.step(*data()[0])
        counts.append(counted.count)
    assert counts[0] > counts[1]


@pytest.mark.gpu
@pytest.mark.parametrize("name", registry)
def test_no_metric_synchronises_a_cuda_device(name: str) -> None:
    def waits(metrics: list[str]) -> int:
        manager = imprint.attach(net().cuda(), "local_ce", monitors=metrics)
        batches = [(x.cuda(), y.cuda()) for x, y in data()]
        manager.step(*batches[0])
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                for x, y in batches:
                    manager.step(x, y)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return len([w for w in caught if "synchroniz" in str(w.message)])

    assert waits([name]) == waits([])


@pytest.mark.usefixtures("double")
def test_backprop_is_aligned_with_itself_and_what_learns_from_the_output_always_is() -> None:
    for rule, hidden in (("backprop", 1.0), ("local_ce", None)):
        manager = imprint.attach(net(), rule, layers=r"[0-5]", monitors=[Alignment(every=1)])
        for x, y in data():
            manager.step(x, y)
        got = {unit: row["alignment"] for unit, row in manager.metrics().items()}
        assert got["task"] == pytest.approx(1.0, abs=1e-12)
        for unit in UNITS:
            assert got[unit] == pytest.approx(1.0, abs=1e-12) if hidden else got[unit] < 0.999


@pytest.mark.usefixtures("double")
def test_alignment_with_accumulation_compares_what_both_gathered() -> None:
    model, batches = net(), data(4)[:3]
    model[2].bias.requires_grad_(False)
    options = {"layers": r"[0-5]", "optimizer": sgd, "monitors": [Alignment(every=2)], "accumulate": 3}
    manager = imprint.attach(model, "local_ce", **options).bind(*batches[0])
    nn.init.normal_(manager.units["2"].unit.objective.linear.weight)
    head = copy.deepcopy(manager.units["2"].unit.objective.linear)
    mine, wanted = torch.zeros(7, 8), torch.zeros(7, 8)
    for x, y in batches:
        twin = copy.deepcopy(model)
        wanted += (last := backprop(twin, x, y)["2.weight"])
        loss = F.cross_entropy(head(twin[2:4](twin[:2](x).detach())), y)
        mine += torch.autograd.grad(loss, [twin[2].weight])[0]

    def three_steps() -> float:
        for x, y in batches:
            manager.step(x, y)
        return manager.metrics(reset=False)["2"]["alignment"]

    first = three_steps()
    assert first == pytest.approx(angle([mine], [wanted]), abs=1e-12)
    assert abs(first - angle([mine], [last])) > 1e-4
    assert three_steps() == first  # the second update is not measured
    assert three_steps() != first


@pytest.mark.parametrize("every", [1, 3])
def test_alignment_runs_the_model_and_its_hooks_once_more(every: int) -> None:
    calls = []
    model = net()
    model[2].register_forward_hook(lambda module, args, out: calls.append(out.requires_grad))
    x, y = data()[0]
    manager = imprint.attach(model, "local_ce", monitors=[Alignment(every=every)]).bind(x.float(), y)
    calls.clear()
    for _ in range(6):
        manager.step(x.float(), y)
    assert len(calls) == 6 + 6 // every and sum(calls) == 6 // every


def test_means_keep_what_units_found_before_a_step_failed() -> None:
    """The units before the failing one had learned: their losses count."""
    model = net()
    manager = imprint.attach(model, "local_ce", layers=r"[0-5]", monitors=["loss"])
    x, y = data()[0]
    manager.step(x.float(), y)
    before = manager.metrics()
    with torch.no_grad():
        model[2].weight.fill_(torch.inf)
    with pytest.raises(NonFiniteError):
        manager.step(x.float(), y)
    after = manager.metrics()
    assert list(after) == ["0"] and set(before) > {"0"} and after["0"]["loss"] != before["0"]["loss"]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("accumulate", [1, 3])
def test_alignment_leaves_out_a_batch_that_failed(accumulate: int) -> None:
    batches = data(4)[:3]
    bad = batches[0][0].clone().fill_(float("nan")), batches[0][1]
    found = []
    for failing in (set(), {0}, {1, 2}):
        torch.manual_seed(0)
        manager = imprint.attach(
            net(), "local_ce", layers=r"[0-5]", optimizer=sgd, monitors=[Alignment(every=1)], accumulate=accumulate
        ).bind(*batches[0])
        for i, (x, y) in enumerate(batches * 2):
            if i in failing:
                with pytest.raises(NonFiniteError):
                    manager.step(*bad)
            manager.step(x, y)
        found.append({unit: row["alignment"] for unit, row in manager.metrics().items()})
    assert found[0] == found[1] == found[2] and all(-1 <= v <= 1 for v in found[0].values())


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("rule", ["local_ce", "backprop"])
@pytest.mark.parametrize("soft", [False, True])
def test_linear_probe_equals_a_classifier_trained_by_autograd(rule: str, soft: bool) -> None:
    model, batches = net(), data(12)
    seen: dict[str, list[Tensor]] = {u: [] for u in UNITS}
    probe = LinearProbe(lr=0.2)
    manager = imprint.attach(model, rule, layers=r"[0-5]", monitors=[probe], optimizer=sgd, num_classes=3)
    for unit, name in zip(UNITS, ("1", "3", "5"), strict=True):
        model.get_submodule(name).register_forward_hook(
            lambda m, a, out, unit=unit: seen[unit].append(out.detach().clone())
        )
    targets = []
    for x, y in batches:
        if soft:
            y = F.softmax(torch.randn(len(y), CLASSES), 1)
        elif len(targets) == 3:
            y = y.clone()
            y[:4] = -100
        if not targets:
            manager.bind(x, y)
            for values in seen.values():
                values.clear()
        manager.step(x, y)
        targets.append(y)
    got, gained = manager.metrics(), []
    for unit in UNITS:
        width = seen[unit][0].shape[1]
        line = nn.Linear(width, CLASSES)
        for p in line.parameters():
            nn.init.zeros_(p)
        optimizer = torch.optim.Adam(line.parameters(), 0.2)
        right = count = late = 0
        for h, y in zip(seen[unit], targets, strict=True):
            logits = line(h / h.square().mean().sqrt())
            wanted = y.argmax(1) if soft else y
            right += int((logits.argmax(1) == wanted).sum())
            count += int((wanted >= 0).sum())
            optimizer.zero_grad()
            F.cross_entropy(logits, y).backward()
            optimizer.step()
            late += int((line(h / h.square().mean().sqrt()).argmax(1) == wanted).sum())
        assert got[unit]["linear_probe"] == right / count
        gained.append(late - right)
        reader = probe.readers[f"{unit} {width}"]
        torch.testing.assert_close(reader.weight.detach(), line.weight.detach(), atol=1e-12, rtol=1e-10)
        torch.testing.assert_close(reader.bias.detach(), line.bias.detach(), atol=1e-12, rtol=1e-10)
    assert any(gained)  # it is scored before it learns


def test_linear_probe_learns_what_the_features_hold_and_nothing_of_noise() -> None:
    accuracies = []
    for informed in (True, False):
        model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 3))
        manager = imprint.attach(model, {"0": imprint.Frozen()}, monitors="linear_probe")
        for step in range(120):
            x = torch.randn(64, 8)
            y = (
                torch.bucketize(x[:, 0] * 2 + x[:, 1], torch.tensor([-1.0, 1.0]))
                if informed
                else torch.randint(3, (64,))
            )
            if step == 100:
                manager.metrics()
            manager.step(x, y)
        accuracies.append(manager.metrics()["0"]["linear_probe"])
    assert accuracies[0] > 0.8 and 0.25 < accuracies[1] < 0.42


def test_metrics_of_tokens_maps_and_values() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.block = nn.Embedding(11, 6), nn.TransformerEncoderLayer(6, 2, 12, 0.0, batch_first=True)
            self.out = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.block(self.embed(x)))

    x, y = torch.randint(11, (5, 7)), torch.randint(4, (5, 7))
    manager = imprint.attach(
        Tokens(), "local_ce", layers=["block"], exclude="embed.*", monitors=["linear_probe", "accuracy"]
    )
    for _ in range(3):
        manager.step(x, y)
    assert next(iter(manager.probes["linear_probe"].readers)) == "block 6"
    assert manager.probes["linear_probe"].sums["block", "linear_probe"][1] == 3 * 35
    assert manager.probes["accuracy"].sums["block", "accuracy"][1] == 3 * 35

    maps = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    with torch.no_grad():
        maps[0].weight[1], maps[0].bias[1] = 0.0, -1.0
    manager = imprint.attach(maps, "local_ce", layers=r"0|1", monitors=["activations", LinearProbe(limit=20)])
    manager.step(torch.randn(6, 1, 8, 8), torch.randint(3, (6,)))
    assert manager.metrics()["0"]["activation_dead"] == 0.25  # one of four channels
    assert list(manager.probes["linear_probe"].readers) == ["0 16"]  # 4 x 6 x 6, pooled to 4 x 2 x 2

    values = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    manager = imprint.attach(values, "local_ce", layers=r"0|1", monitors=["linear_probe", "accuracy", "loss"])
    manager.step(torch.randn(6, 3), torch.randn(6, 2))
    assert all(set(row) == {"loss"} for row in manager.metrics().values())


@pytest.mark.usefixtures("double")
def test_accuracy_of_context_rows_when_there_are_fewer_samples_than_classes() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5))
    manager = imprint.attach(model, "sigprop", monitors=["accuracy"], optimizer=lambda p: torch.optim.SGD(p, 0.0))
    manager.bind(torch.randn(8, 4), torch.randint(5, (8,)))
    y = torch.tensor([4, 1, 4])
    x = torch.randn(3, 4)
    codes = F.one_hot(y, 5).double() @ manager.context.stream.weight0
    h, t = model[:2](x).detach(), model[:2](codes).detach()
    found = y[F.cosine_similarity(h[:, None], t[None], dim=2).argmax(1)]
    manager.step(x, y)
    assert manager.metrics()["0"]["accuracy"] == pytest.approx(float((found == y).double().mean()))
    manager.step(x, torch.tensor([4, -100, 4]))
    assert manager.metrics()["0"]["accuracy"] == 1.0  # one class is left, and its rows are equal


@pytest.mark.parametrize("ignore", [0, 255, -1])
def test_rows_without_a_label_do_not_count(ignore: int) -> None:
    labels, names = imprint.Labels(3, ignore_index=ignore), ["accuracy", "linear_probe"]
    manager = imprint.attach(net(), "local_ce", layers=r"[0-5]", labels=labels, monitors=names)
    wanted = torch.tensor([1, 2, 1, ignore, ignore])
    manager.step(torch.randn(5, 6), wanted)
    for name in names:
        assert manager.probes[name].sums["2", name][1] == 3
    manager.metrics()
    manager.step(torch.randn(2, 6), torch.tensor([ignore, ignore]))
    assert manager.metrics() == {}  # nothing was counted, so there is no 0/0


def test_sums_are_kept_in_double_precision_and_means_are_weighted() -> None:
    metric = UnitLoss()
    metric.add("a", torch.tensor(2.0**24))
    for _ in range(8):
        metric.add("a", torch.tensor(1.0), 0)
    assert metric.read() == {"a": {"loss": 2.0**24 + 8}}
    assert (
        float(torch.tensor(2.0**24) + torch.tensor(1.0) + torch.tensor(1.0)) == 2.0**24
    )  # what single precision would keep
    metric.add("b", torch.tensor(3.0), torch.tensor(4), "other")
    metric.add("b", torch.tensor(3.0), torch.tensor(0), "none")
    metric.add("b", torch.tensor(0.0), torch.tensor(0), "nothing")
    assert metric.read()["b"] == {"other": 0.75}
    assert metric.read() == metric.read()
    metric.reset()
    assert metric.read() == {}


def test_means_start_anew_when_they_are_read_and_only_then() -> None:
    manager = imprint.attach(net(), "local_ce", layers=r"[0-5]", monitors=["loss", "accuracy", "activations"])
    (x, y), *_ = data()
    manager.step(x, y)
    first = manager.metrics(reset=False)
    assert list(first) == [*UNITS, "task"] and list(first["0"]) == [
        "loss", "accuracy", "activation_mean", "activation_std", "activation_zeros", "activation_dead",
    ]  # fmt: skip
    assert manager.metrics() == first
    assert manager.metrics() == {}


@pytest.mark.parametrize("name", registry)
def test_a_metric_goes_on_from_its_state(name: str, tmp_path) -> None:
    def make() -> imprint.Manager:
        torch.manual_seed(5)
        metric = Alignment(every=2) if name == "alignment" else name
        return imprint.attach(net(), "local_ce", layers=r"[0-5]", monitors=[metric], accumulate=2)

    batches = data(8)
    straight, first, second = make(), make(), make()
    for x, y in batches:
        straight.step(x, y)
    for x, y in batches[:5]:
        first.step(x, y)
    torch.save([first.state_dict(), first.probes[name].state_dict()], tmp_path / "state.pt")
    expected = first.metrics(reset=False)
    first.step(*batches[5])  # what is saved is a copy
    manager_state, metric_state = torch.load(tmp_path / "state.pt", weights_only=True)
    second.load_state_dict(manager_state)
    second.probes[name].load_state_dict(metric_state)
    assert second.metrics(reset=False) == expected
    for x, y in batches[5:]:
        second.step(x, y)
    assert second.metrics() == straight.metrics() != expected


def test_monitors_are_chosen_by_name_class_or_object_and_refused_with_a_reason() -> None:
    assert [type(m) for m in make_metrics(["loss", GradNorm, UpdateRatio()])] == [UnitLoss, GradNorm, UpdateRatio]
    assert [type(m) for m in make_metrics("loss")] == [UnitLoss]
    with pytest.raises(UnknownNameError, match="did you mean 'grad_norm'"):
        imprint.attach(net(), "local_ce", monitors=["gradnorm"])
    with pytest.raises(ArgumentError, match="two are called 'alignment'"):
        imprint.attach(net(), "local_ce", monitors=[Alignment(2), Alignment(3)])
    with pytest.raises(ArgumentError, match="not a metric"):
        imprint.attach(net(), "local_ce", monitors=[3])  # type: ignore[list-item]
    with pytest.raises(ArgumentError, match="every"):
        Alignment(0)
    with pytest.raises(ArgumentError, match="positive"):
        LinearProbe(lr=-1.0)
    with pytest.raises(ArgumentError, match="taken"):
        monitors.metric.register_monitor("loss")(GradNorm)


@pytest.mark.usefixtures("double")
def test_a_hand_wired_propagator_takes_metrics() -> None:
    layer = nn.Linear(4, 4)
    before = layer.weight.detach().clone(), layer.bias.detach().clone()
    unit = propagators.Loss(layer, torch.optim.SGD(layer.parameters(), 0.5), losses.hebbian, name="fc")
    unit.probes = make_metrics(
        ["loss", "grad_norm", "update_ratio", "accuracy", "activations", "linear_probe", "alignment"]
    )
    h, t = torch.randn(6, 4), torch.randn(6, 4)
    unit((h, t, torch.arange(6)))
    table = monitors.metric.gather(unit.probes, ["fc"])["fc"]
    twin = nn.Linear(4, 4)
    with torch.no_grad():
        twin.weight.copy_(before[0])
        twin.bias.copy_(before[1])
    value = losses.hebbian(None, twin(h), twin(t), h, t, torch.arange(6))
    value.backward()
    assert table["loss"] == pytest.approx(value.item(), abs=1e-12)
    assert table["grad_norm"] == pytest.approx(length([twin.weight.grad, twin.bias.grad]), abs=1e-12)
    assert table["update_ratio"] == pytest.approx(
        0.5 * length([twin.weight.grad, twin.bias.grad]) / length(list(before)), abs=1e-12
    )
