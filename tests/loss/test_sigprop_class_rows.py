"""K context rows, one a class, replace B rows, one a sample, exactly; where they must not, they differ."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from imprint import loss, models, propagators, signals

from references import sigprop as reference

CLASSES = 4
KINDS = {
    "v9": (loss.v9_input_target_max_all, reference.v9),
    "v14": (loss.v14_input_target_max_rand, reference.v14),
    "v15": (loss.v15_input_target_topk(k=2), reference.v15(2)),
}


def closed_form(kind: str, h: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """mean_i f_i [-z_iy + log sum_k n_k exp(z_ik)], by loops."""
    n = [int((y == k).sum()) for k in range(len(t))]
    total = h.new_zeros(())
    for i, label in enumerate(y.tolist()):
        z = [reference.similarity(h[i], t[k]) for k in range(len(t))]
        share = sum((n[k] * z[k].exp() for k in range(len(t)) if n[k]), h.new_zeros(()))
        total = total + {"v14": 1, "v9": n[label], "v15": min(2, n[label])}[kind] * (share.log() - z[label])
    return total / len(h)


@pytest.mark.parametrize("shape", [(5,), (3, 2, 2)], ids=str)
@pytest.mark.parametrize(
    "labels", [[0, 0, 1, 1, 3, 3, 3], [0, 1, 1, 2, 2, 3, 0, 3]], ids=["absent class", "all classes"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_class_rows_equal_sample_rows_and_the_closed_form(kind: str, labels: list[int], shape: tuple[int, ...]) -> None:
    """Every class that is there has at least the two samples that v15's equality asks for."""
    ours, naive = KINDS[kind]
    by_class = ours(rows="class") if kind != "v15" else loss.v15_input_target_topk(k=2, rows="class")
    y = torch.tensor(labels)
    h = torch.randn(len(y), *shape, dtype=torch.float64, requires_grad=True)
    t = torch.randn(CLASSES, *shape, dtype=torch.float64, requires_grad=True)
    onehot = torch.eye(CLASSES, dtype=torch.float64)
    few = by_class(None, h, t, None, onehot, y)
    values = {
        "sample rows": ours(None, h, t[y], None, onehot[y], y),
        "loops over sample rows": naive(h, t[y], onehot[y], y),
        "closed form": closed_form(kind, h, t, y),
    }
    found = torch.autograd.grad(few, [h, t], retain_graph=True)
    for name, value in values.items():
        torch.testing.assert_close(few, value, rtol=1e-12, atol=0, msg=name)
        torch.testing.assert_close(found, torch.autograd.grad(value, [h, t]), rtol=1e-9, atol=1e-12, msg=name)
    plain = loss.v1_input_label_direct(None, h, t, None, onehot, y)  # without the class counts it is another loss
    assert abs(float((plain - few).detach())) > 1e-3


def test_with_labels_v15_takes_no_false_positives_in_a_class_smaller_than_k() -> None:
    y = torch.tensor([0, 0, 0, 1])
    t0 = torch.eye(2)
    flat = torch.zeros(4, 3)
    small = loss.v15_input_target_topk(k=3, rows="class")(None, flat, torch.randn(2, 3), None, t0, y)
    torch.testing.assert_close(small, torch.log(torch.tensor(4.0)) * (3 + 3 + 3 + 1) / 4)
    by_labels = loss.v15_input_target_topk(k=3, positives="labels")(None, flat, torch.randn(4, 3), None, t0[y], y)
    torch.testing.assert_close(by_labels, small)
    reference_way = loss.v15_input_target_topk(k=3)(None, flat, torch.randn(4, 3), None, t0[y], y)
    torch.testing.assert_close(reference_way, torch.log(torch.tensor(4.0)) * 3)


def test_a_batch_as_large_as_the_number_of_classes_is_no_special_case() -> None:
    y = torch.tensor([3, 3, 0, 1])
    h, t = torch.randn(4, 5).double(), torch.randn(4, 5).double()
    value = loss.v9_input_target_max_all(rows="class")(None, h, t, None, torch.eye(4), y)
    torch.testing.assert_close(value, closed_form("v9", h, t, y))
    confused = loss.v9_input_target_max_all(None, h, t, None, torch.eye(4), y)
    assert abs(float(confused - value)) > 1e-2


def chain(norm: str, value: Callable[..., Tensor], distinct: bool) -> nn.Module:
    torch.manual_seed(0)
    make = {"none": nn.Identity, "layer": lambda: nn.LayerNorm(6), "batch": lambda: nn.BatchNorm1d(6)}[norm]
    sgd = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    generator = signals.ProjectionContext(nn.Linear(CLASSES, 6), (CLASSES,), (6,))
    rows = [signals.DistinctBatchLabelsOnehot()] if distinct else []
    module = nn.Sequential(signals.LabelNumberToOnehot(CLASSES), *rows, generator).double()
    units = [nn.Sequential(nn.Linear(6, 6), make(), nn.Tanh()).double() for _ in range(3)]
    links = [propagators.Loss(u, sgd(u.parameters()), value) for u in units]
    signal = propagators.signals.Loss(module, sgd(module.parameters()), value)
    return models.Forward(nn.Sequential(*links), signal)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_chains_with_class_rows_learn_what_chains_with_sample_rows_learn(kind: str, norm: str) -> None:
    options = {"k": 2} if kind == "v15" else {}
    ours = getattr(
        loss,
        {"v9": "v9_input_target_max_all", "v14": "v14_input_target_max_rand", "v15": "v15_input_target_topk"}[kind],
    )
    few, many = (
        chain(norm, ours(rows="class", **options), True),
        chain(norm, ours(positives="labels", **options), False),
    )
    data = torch.Generator().manual_seed(1)
    for _ in range(5):
        x = torch.randn(9, 6, generator=data, dtype=torch.float64)
        y = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3, 3])[torch.randperm(9, generator=data)]
        few(x, y)
        many(x, y)
    far = max(float((a - b).detach().abs().max()) for a, b in zip(few.parameters(), many.parameters(), strict=True))
    if norm == "batch":  # statistics over K rows are not those over B rows: said so in the docstrings
        assert far > 1e-4
    else:
        assert far < 1e-12
