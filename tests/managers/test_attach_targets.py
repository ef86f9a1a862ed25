"""What y may be: labels, soft labels, values, tokens; weighted, missing, smoothed; for any number of rows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import imprint
from imprint.errors import ArgumentError, LabelError, ShapeError, StateError

K, B, D = 4, 8, 6


class Net(nn.Module):
    def __init__(self, out: int = K) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(5, D), nn.Tanh()), nn.Linear(D, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def sgd(params: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, 0.1)


Loss = Callable[[Tensor, Tensor], Tensor]


def trained_by_hand(
    model: Net, batches: list[tuple[Tensor, Tensor]], loss: Loss, width: int, context: Any = None
) -> list[Tensor]:
    """Weights after SGD on the local loss of a zero-started head (or ``context(h, y) -> loss``), and on the task's."""
    w, b, v, c = (p.detach().clone().requires_grad_() for p in model.parameters())
    m, n = torch.zeros(width, D).double().requires_grad_(), torch.zeros(width).double().requires_grad_()
    for x, y in batches:
        h = torch.tanh(x @ w.T + b)
        local = loss(h @ m.T + n, y) if context is None else context(lambda z, w=w, b=b: torch.tanh(z @ w.T + b), h, y)
        task = loss(h.detach() @ v.T + c, y)
        for group, value in (((w, b, m, n), local), ((v, c), task)):
            if not value.requires_grad:
                continue
            grads = torch.autograd.grad(value, group, allow_unused=True)
            with torch.no_grad():
                for p, g in zip(group, grads, strict=True):
                    if g is not None:
                        p -= 0.1 * g
    return [w, b, v, c]


def check(model: Net, expected: list[Tensor], tolerance: float = 1e-12) -> None:
    for p, e in zip(model.parameters(), expected, strict=True):
        assert torch.allclose(p, e, rtol=0, atol=tolerance), float((p.detach() - e.detach()).abs().max())


def xs(n: int, rows: int = B) -> list[Tensor]:
    return [torch.randn(rows, 5).double() for _ in range(n)]


WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.0]).double()


def as_long(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y.long())


LABELS: dict[str, tuple[imprint.Labels, Callable[[], Tensor], Loss]] = {
    "labels": (imprint.Labels(), lambda: torch.randint(K, (B,)), F.cross_entropy),
    "int32": (imprint.Labels(), lambda: torch.randint(K, (B,), dtype=torch.int32), as_long),
    "uint8": (imprint.Labels(), lambda: torch.randint(K, (B,), dtype=torch.uint8), as_long),
    "weights": (
        imprint.Labels(K, weight=WEIGHT), lambda: torch.randint(K, (B,)), lambda z, y: F.cross_entropy(z, y, WEIGHT)
    ),
    "smoothing": (
        imprint.Labels(K, label_smoothing=0.2), lambda: torch.randint(K, (B,)),
        lambda z, y: F.cross_entropy(z, y, label_smoothing=0.2),
    ),
    "soft": (imprint.Labels(K), lambda: torch.rand(B, K).double().softmax(1), F.cross_entropy),
    "soft float32": (
        imprint.Labels(K), lambda: torch.rand(B, K).softmax(1), lambda z, y: F.cross_entropy(z, y.double()),
    ),
    "soft, weights, smoothing": (
        imprint.Labels(K, weight=WEIGHT, label_smoothing=0.1), lambda: torch.rand(B, K).double().softmax(1),
        lambda z, y: F.cross_entropy(z, y, WEIGHT, label_smoothing=0.1),
    ),
    "ignored": (
        imprint.Labels(K), lambda: torch.where(torch.arange(B) % 3 == 0, -100, torch.randint(K, (B,))), F.cross_entropy
    ),
    "ignored by another number": (
        imprint.Labels(K, ignore_index=255), lambda: torch.where(torch.arange(B) % 3 == 0, 255, torch.randint(K, (B,))),
        lambda z, y: F.cross_entropy(z, y, ignore_index=255),
    ),
    "ignored class, weights, smoothing": (
        imprint.Labels(K, weight=WEIGHT + 0.1, ignore_index=0, label_smoothing=0.1), lambda: torch.randint(K, (B,)),
        lambda z, y: F.cross_entropy(z, y, WEIGHT + 0.1, ignore_index=0, label_smoothing=0.1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", LABELS)
def test_local_ce_and_the_task_read_labels_as_torch_does(kind: str) -> None:
    labels, draw, loss = LABELS[kind]
    model = Net().double()
    batches = [(x, draw()) for x in xs(4)]
    expected = trained_by_hand(model, batches, loss, K)
    manager = imprint.attach(model, "local_ce", labels=labels, layers=["body"], optimizer=sgd)
    for x, y in batches:
        manager.step(x, y)
    check(model, expected)


def contrast(t_in: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Any:
    def of(run: Any, h: Tensor, y: Tensor) -> Tensor:
        return loss(F.normalize(h) @ F.normalize(run(t_in)).T / 0.1, y)

    return of


@pytest.mark.parametrize(
    "kind", ["labels", "int32", "uint8", "weights", "soft", "soft float32", "ignored", "ignored by another number",
             "smoothing", "soft, weights, smoothing", "ignored class, weights, smoothing"],
)  # fmt: skip
def test_sigprop_reads_labels_as_torch_does(kind: str) -> None:
    labels, draw, loss = LABELS[kind]
    model = Net().double()
    batches = [(x, draw()) for x in xs(4)]
    manager = imprint.attach(model, "sigprop", labels=labels, num_classes=K, layers=["body"], optimizer=sgd)
    manager.bind(*batches[0])
    start = dict(manager.context.stream.named_parameters())["weight0"].detach()
    expected = trained_by_hand(model, batches, loss, K, contrast(start, loss))
    for x, y in batches:
        manager.step(x, y)
    check(model, expected, 1e-7 if "float32" in kind else 1e-12)  # probabilities that sum to 1 but for rounding


@pytest.mark.parametrize("rule", ["local_ce", "sigprop", "predsim", "sim", "drtp", "forward_forward"])
def test_a_batch_without_any_label_moves_nothing(rule: str) -> None:
    for first in (True, False):
        model = Net().double()
        manager = imprint.attach(model, rule, num_classes=K, layers=["body"])
        if not first:
            manager.step(xs(1)[0], torch.randint(K, (B,)))
        before = {k: v.clone() for k, v in model.state_dict().items()}
        out = manager.step(xs(1)[0], torch.full((B,), -100))
        assert out.shape == (B, K) and manager.steps == 2 - first
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        manager.step(xs(1)[0], torch.randint(K, (B,))), manager.step(xs(1)[0], torch.randint(K, (B,)))
        assert not any(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("rule", ["local_ce", "sigprop", "predsim", "sim", "drtp"])
def test_rows_without_a_label_count_in_no_loss(rule: str) -> None:
    """Equal to a step on the labelled rows alone, for a unit whose rows do not depend on each other."""
    model, other = Net().double(), Net().double()
    other.load_state_dict(model.state_dict())
    x, y = xs(1)[0], torch.randint(K, (B,))
    y[::3] = -100
    for each, (a, b) in ((model, (x, y)), (other, (x[y >= 0], y[y >= 0]))):
        torch.manual_seed(5)
        manager = imprint.attach(each, rule, num_classes=K, layers=["body"], optimizer=sgd)
        manager.bind(x, y)
        manager.step(a, b), manager.step(a, b)
    check(model, list(other.parameters()), 1e-11)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_regression(shape: tuple[int, ...]) -> None:
    width = torch.Size(shape).numel()

    class Reshaped(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).view(len(x), *shape)

    model = Reshaped(width).double()
    loss = lambda z, y: F.mse_loss(z.view_as(y), y)
    batches = [(x, torch.randn(B, *shape).double()) for x in xs(4)]
    expected = trained_by_hand(model, batches, loss, width)
    manager = imprint.attach(model, "local_ce", layers=["body"], optimizer=sgd)
    for x, y in batches:
        manager.step(x, y)
    check(model, expected)
    assert manager.predict(x, by="local").flatten(1).shape == (B, width) and manager.bound["num_classes"] is None


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_regression_by_sigprop_has_one_context_row_a_sample(shape: tuple[int, ...]) -> None:
    width = torch.Size(shape).numel()

    class Reshaped(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).view(len(x), *shape)

    model = Reshaped(width).double()
    batches = [(x, torch.randn(rows, *shape).double()) for rows in (B, 3, 1) for x in xs(1, rows)]
    manager = imprint.attach(model, "sigprop", layers=["body"], optimizer=sgd)
    manager.bind(*batches[0])
    start = dict(manager.context.stream.named_parameters())["weight0"].detach()
    assert start.shape == (width, 5)

    def of(run: Any, h: Tensor, y: Tensor) -> Tensor:
        z = F.normalize(h) @ F.normalize(run(y.view(len(y), -1) @ start)).T / 0.1
        return F.cross_entropy(z, torch.arange(len(y)))

    expected = trained_by_hand(model, batches, lambda z, y: F.mse_loss(z.view_as(y), y), width, of)
    for x, y in batches:
        manager.step(x, y)
    check(model, expected)


def test_sigprop_has_no_local_scores_of_values_and_other_units_keep_theirs() -> None:
    net = lambda: nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 2))
    x, y = torch.randn(32, 8), torch.randn(32, 2)
    manager = imprint.attach(net(), "sigprop")
    manager.step(x, y)
    for ask in (lambda: manager.predict(x, by="local"), lambda: manager.evaluate((x, y), by="local")):
        with pytest.raises(StateError, match="none of these units has scores"):
            ask()
    assert manager.evaluate((x, y))["loss"] > 0
    mixed = imprint.attach(net(), {"0": "sigprop", "2": "local_ce", "4": "local_ce"})
    mixed.step(x, y)
    plain = copy.deepcopy(mixed.model)
    expected = torch.zeros(32, 2)
    for name in ("2", "4"):
        unit = mixed.units[name].unit
        if mixed.units[name].speaks:
            expected += unit.objective.linear(plain[: int(unit.names[-1]) + 1](x)).detach()
    assert mixed.units["2"].speaks and expected.abs().max() > 0
    torch.testing.assert_close(mixed.predict(x, by="local"), expected)


def test_predict_by_output_has_no_layers() -> None:
    manager = imprint.attach(nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 3)), "local_ce")
    manager.step(torch.randn(4, 8), torch.arange(4) % 3)
    for layers in ("0", ["0"], "misspelt"):
        with pytest.raises(ArgumentError, match="layers= chooses units"):
            manager.predict(torch.randn(4, 8), layers=layers)


def test_rules_for_classes_refuse_values() -> None:
    for rule in ("sim", "predsim", "forward_forward"):
        manager = imprint.attach(Net(1).double(), rule, layers=["body"])
        with pytest.raises((ArgumentError, ShapeError), match=r"class"):
            manager.step(xs(1)[0], torch.randn(B, 1).double())
        assert manager.bound is None


class Tagger(nn.Module):
    def __init__(self, channels_first: bool) -> None:
        super().__init__()
        self.embed, self.body, self.head = (
            nn.Embedding(9, D),
            nn.Sequential(nn.Linear(D, D), nn.Tanh()),
            nn.Linear(D, K),
        )
        self.channels_first = channels_first

    def forward(self, ids: Tensor) -> Tensor:
        z = self.head(self.body(self.embed(ids)))
        return z.transpose(1, 2) if self.channels_first else z


@pytest.mark.parametrize("channels_first", [False, True])
def test_a_label_a_token(channels_first: bool) -> None:
    model = Tagger(channels_first).double()
    e, w, b, v, c = (p.detach().clone().requires_grad_() for p in model.parameters())
    heads = [torch.zeros(s).double().requires_grad_() for s in ((K, D), (K,), (K, D), (K,))]
    manager = imprint.attach(model, "local_ce", layers=["embed", "body"], optimizer=sgd)
    for length in (5, 5, 3):
        ids, y = torch.randint(9, (B, length)), torch.randint(K, (B, length))
        y[0, 0] = -100
        first = e[ids]
        second = torch.tanh(first.detach() @ w.T + b)
        losses = [
            F.cross_entropy((h @ m.T + n).flatten(0, 1), y.flatten())
            for h, m, n in ((first, *heads[:2]), (second, *heads[2:]), (second.detach(), v, c))
        ]
        for loss, group in zip(losses, ((e, *heads[:2]), (w, b, *heads[2:]), (v, c)), strict=True):
            grads = torch.autograd.grad(loss, group)
            with torch.no_grad():
                for p, g in zip(group, grads, strict=True):
                    p -= 0.1 * g
        manager.step(ids, y)
    for p, q in zip(model.parameters(), (e, w, b, v, c), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-12)
    assert manager.predict(ids, by="local").shape == (B, 3, K)


def test_a_label_a_token_needs_tokens() -> None:
    class Pooled(Tagger):
        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.body(self.embed(ids).mean(1)))[:, None].expand(-1, ids.shape[1], -1)

    manager = imprint.attach(Pooled(False), "local_ce", layers=["embed", "body"])
    with pytest.raises(ShapeError, match=r"unit 'body'"):
        manager.step(torch.randint(9, (B, 5)), torch.randint(K, (B, 5)))
    manager = imprint.attach(Tagger(False), "sigprop", layers=["embed", "body"])
    with pytest.raises(ArgumentError, match=r"unit 'embed'[\s\S]*one label a sample[\s\S]*local_ce"):
        manager.step(torch.randint(9, (B, 5)), torch.randint(K, (B, 5)))


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("rule", ["local_ce", "sigprop", "predsim", "sim", "drtp", "forward_forward"])
def test_fewer_rows_than_classes(rule: str, rows: int) -> None:
    """A ragged last batch, down to one row; also when it is what the manager binds with."""
    for first in (rows, B):
        model = Net().double()
        manager = imprint.attach(model, rule, num_classes=K, layers=["body"])
        manager.step(torch.randn(first, 5).double(), torch.randint(K, (first,)))
        out = manager.step(torch.randn(rows, 5).double(), torch.randint(K, (rows,)))
        assert out.shape == (rows, K) and all(torch.isfinite(p).all() for p in model.parameters())


def test_sigprop_with_more_classes_than_rows_compares_samples() -> None:
    model = Net().double()
    batches = [(torch.randn(3, 5).double(), torch.tensor(y)) for y in ([0, 1, 1], [3, 3, 2], [2, 0, 1])]
    manager = imprint.attach(model, "sigprop", num_classes=K, layers=["body"], optimizer=sgd, loss="v14")
    manager.bind(*batches[0])
    start = dict(manager.context.stream.named_parameters())["weight0"].detach()

    def of(run: Any, h: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(F.normalize(h) @ F.normalize(run(start[y])).T / 0.1, torch.arange(3))

    expected = trained_by_hand(model, batches, F.cross_entropy, K, of)
    for x, y in batches:
        manager.step(x, y)
    check(model, expected)


def test_the_number_of_classes_is_read_off_the_output() -> None:
    manager = imprint.attach(Net().double(), "local_ce")
    manager.step(xs(1)[0], torch.zeros(B, dtype=torch.long))
    assert manager.bound["num_classes"] == K and manager.units["body.0"].prop.params[
        "objective:linear.weight"
    ].shape == (K, D)


def test_integer_values_for_one_channel_are_told_apart() -> None:
    manager = imprint.attach(Net(1).double(), "local_ce")
    with pytest.raises(LabelError, match=r"one channel[\s\S]*y\.float\(\)[\s\S]*num_classes"):
        manager.step(xs(1)[0], torch.randint(10, (B,)))
    own = lambda out, y: F.binary_cross_entropy_with_logits(out[:, 0], y.to(out.dtype))
    model = Net(1).double()
    manager = imprint.attach(model, "local_ce", num_classes=2, task_loss=own, layers=["body"], optimizer=sgd)
    x, y = xs(1)[0], torch.randint(2, (B,))
    v, c = model.head.weight.detach().clone().requires_grad_(), model.head.bias.detach().clone().requires_grad_()
    grads = torch.autograd.grad(own(model.body(x).detach() @ v.T + c, y), (v, c))
    manager.step(x, y)
    check(nn.ModuleList([model.head]), [v - 0.1 * grads[0], c - 0.1 * grads[1]])  # type: ignore[arg-type]


TARGET_ERRORS: dict[str, tuple[dict[str, Any], Any, type[Exception], str]] = {
    "above": ({}, torch.tensor([0, K] * 4), LabelError, r"out of range[\s\S]*0\.\.3, or -100[\s\S]*got: +4"),
    "below": ({}, torch.tensor([0, -1] * 4), LabelError, r"out of range[\s\S]*got: +-1"),
    "bool": ({}, torch.ones(B, dtype=torch.bool), LabelError, r"dtype[\s\S]*y\.long\(\)"),
    "complex": ({"num_classes": K}, torch.ones(B, dtype=torch.complex64), LabelError, r"dtype"),
    "list": ({}, [0] * B, LabelError, r"not a tensor[\s\S]*torch\.as_tensor"),
    "none": ({}, None, LabelError, r"missing[\s\S]*manager\.step\(x, y\)"),
    "column": ({"num_classes": K}, torch.zeros(B, 1, dtype=torch.long), ShapeError, r"\(8, 1\)"),
    "rows": ({}, torch.zeros(B - 1, dtype=torch.long), ShapeError, r"number of samples[\s\S]*7"),
    "number": ({}, torch.tensor(1), ShapeError, r"targets"),
    "empty": ({}, torch.zeros(0, dtype=torch.long), ShapeError, r"empty"),
    "soft width": (
        {"num_classes": K}, torch.rand(B, K + 1).double(), ShapeError, r"soft labels[\s\S]*'batch', 4[\s\S]*\(8, 5\)",
    ),
    "one-hot integers": (
        {"num_classes": K}, F.one_hot(torch.arange(B) % K, K), ShapeError, r"\(8, 4\)",
    ),
    "negative": (
        {"num_classes": K}, -torch.rand(B, K).double(), LabelError, r"negative[\s\S]*got: +-0\.[\s\S]*softmax",
    ),
    "several labels": (
        {"num_classes": K}, torch.ones(B, K).double(), LabelError, r"more than 1[\s\S]*4\.0[\s\S]*binary_cross_entropy",
    ),
    "values of another shape": (
        {}, torch.randn(B, 2).double(), ShapeError, r"(task loss|soft labels)[\s\S]*4\)[\s\S]*\(8, 2\)",
    ),
    "too few channels": (
        {"num_classes": K + 1}, torch.zeros(B, dtype=torch.long), ShapeError, r"fewer channels[\s\S]*5",
    ),
    "weights": (
        {"labels": imprint.Labels(K, weight=torch.ones(K + 1))}, torch.zeros(B, dtype=torch.long), ShapeError,
        r"class weights[\s\S]*4[\s\S]*5",
    ),
}  # fmt: skip


ONLY_AT_BIND = ("too few channels", "weights")
MOMENTS = [(kind, bound) for kind in TARGET_ERRORS for bound in (False, True) if not (bound and kind in ONLY_AT_BIND)]


@pytest.mark.parametrize(("kind", "bound"), MOMENTS)
def test_targets_that_do_not_fit_change_nothing(kind: str, bound: bool) -> None:
    options, y, error, match = TARGET_ERRORS[kind]
    model = Net().double()
    manager = imprint.attach(model, "local_ce", layers=["body"], **options)
    x = xs(1)[0]
    if bound:
        manager.step(x, torch.randint(K, (B,)))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(error, match=match):
        manager.step(x, y)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert (manager.bound is not None) == bound and manager.steps == int(bound) and manager.gathered == 0


def test_one_hot_integers_and_columns_are_told_how_to_become_labels() -> None:
    manager = imprint.attach(Net().double(), "local_ce", num_classes=K, layers=["body"])
    x, y = xs(1)[0], torch.randint(K, (B,))
    manager.step(x, y)
    with pytest.raises(ShapeError, match=r"y\.argmax\(1\)"):
        manager.step(x, F.one_hot(y, K))
    with pytest.raises(ShapeError, match=r"y\.flatten\(\)"):
        manager.step(x, y[:, None])


def test_several_labels_a_sample_are_values_with_a_task_loss_of_their_own() -> None:
    model = Net().double()
    task_loss = lambda z, y: F.binary_cross_entropy_with_logits(z, y)
    manager = imprint.attach(model, "local_ce", layers=["body"], optimizer=sgd, task_loss=task_loss)
    v, c = model.head.weight.detach().clone().requires_grad_(), model.head.bias.detach().clone().requires_grad_()
    x, y = xs(1)[0], (torch.rand(B, K) < 0.5).double()
    grads = torch.autograd.grad(task_loss(model.body(x).detach() @ v.T + c, y), (v, c))
    manager.step(x, y)
    assert manager.bound["num_classes"] is None
    check(nn.ModuleList([model.head]), [v - 0.1 * grads[0], c - 0.1 * grads[1]])  # type: ignore[arg-type]


def test_forward_forward_reads_probabilities_as_their_likeliest_class() -> None:
    soft, torch_state = torch.rand(B, K).double().softmax(1), torch.get_rng_state()
    models = [Net().double(), Net().double()]
    models[1].load_state_dict(models[0].state_dict())
    for model, y in zip(models, (soft, soft.argmax(1)), strict=True):
        manager = imprint.attach(model, "forward_forward", num_classes=K, layers=["body"], optimizer=sgd)
        torch.set_rng_state(torch_state)
        manager.step(torch.ones(B, 5).double(), y)
    assert torch.equal(models[0].body[0].weight, models[1].body[0].weight)
    assert not torch.equal(models[0].head.weight, models[1].head.weight)  # the task loss reads all of them
