"""Heads, similarity, goodness and mixtures on every kind of output: vectors, maps, series, tokens, values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imprint.errors import ArgumentError
from imprint.objectives import Goodness, Head, Labels, Mix, Objective, SimilarityMatching, Spec, Target, View, goodness

from references import forward_forward_paper, local_error_signals

CLASSES = 3
Y = torch.tensor([0, 1, 2, 1])
SHAPES = {"vector": (6,), "map": (5, 4, 4), "series": (5, 8), "tokens": (7, 6)}


def bound(
    objective: Any, shape: tuple[int, ...], tokens: bool = False, classes: int | None = CLASSES, **spec: Any
) -> Any:
    objective.bind(Spec(shape, dtype=torch.float64, channels_last=tokens, **spec), Labels(classes))
    return objective


def output(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(4, *shape, dtype=torch.float64)


@pytest.mark.parametrize("kind", SHAPES)
def test_a_head_is_cross_entropy_of_a_linear_map_of_pooled_features(kind: str) -> None:
    shape = SHAPES[kind]
    head, h = bound(Head(zero_init=False, limit=20), shape, kind == "tokens"), output(shape)
    pooled = {
        "vector": lambda: h,
        "map": lambda: local_error_signals.average_pool(h, 20),
        "series": lambda: h.view(4, 5, 4, 2).mean(3).flatten(1),
        "tokens": lambda: h.mean(1),
    }[kind]()
    expected = F.cross_entropy(pooled @ head.linear.weight.T + head.linear.bias, Y)
    torch.testing.assert_close(head(View(h=h, context=Target(Y))), expected, rtol=1e-11, atol=0)
    assert head.scores(View(h=h)).shape == (4, CLASSES)


def test_a_head_starts_at_zero_so_that_the_unit_waits_for_it() -> None:
    head, h = bound(Head(), (6,)), output((6,)).requires_grad_()
    loss = head(View(h=h, context=Target(Y)))
    assert float(loss.detach()) == pytest.approx(torch.log(torch.tensor(3.0)).item())
    grads = torch.autograd.grad(loss, [h, head.linear.weight])
    assert grads[0].abs().max() == 0.0 and grads[1].abs().max() > 0.01


def test_a_head_teaches_all_tokens_of_a_sample_alike() -> None:
    """It reads their mean: what tells one token from another (positions, patches) gets no gradient of its own."""
    h = output((7, 6)).requires_grad_()
    head = bound(Head(zero_init=False), (7, 6), True)
    grad = torch.autograd.grad(head(View(h=h, context=Target(Y))), h)[0]
    assert float((grad - grad[:, :1]).abs().max()) < 1e-15 < 1e-3 < float(grad.abs().max())
    similarity = bound(SimilarityMatching(), (7, 6), True)
    grad = torch.autograd.grad(similarity(View(h=h, context=Target(Y))), h)[0]
    assert float((grad - grad[:, :1]).abs().max()) > 1e-3


def test_a_label_a_token_is_learned_token_by_token() -> None:
    y = torch.randint(CLASSES, (4, 7))
    head, h = bound(Head(zero_init=False), (7, 6), True, target=(7,)), output((7, 6))
    logits = h.flatten(0, 1) @ head.linear.weight.T + head.linear.bias
    torch.testing.assert_close(head(View(h=h, context=Target(y))), F.cross_entropy(logits, y.flatten()))


@pytest.mark.parametrize("target", [(), (2,), (2, 3)])
def test_values_are_met_in_the_mean_square(target: tuple[int, ...]) -> None:
    y = torch.randn(4, *target, dtype=torch.float64)
    head, h = bound(Head(zero_init=False), (6,), classes=None, target=target), output((6,))
    made = (h @ head.linear.weight.T + head.linear.bias).view(y.shape)
    torch.testing.assert_close(head(View(h=h, context=Target(y))), (made - y).square().mean())


def test_a_pool_of_ones_own() -> None:
    head = bound(Head(zero_init=False, pool=lambda h: h.amax((2, 3))), (5, 4, 4))
    h = output((5, 4, 4))
    expected = F.cross_entropy(h.amax((2, 3)) @ head.linear.weight.T + head.linear.bias, Y)
    torch.testing.assert_close(head(View(h=h, context=Target(Y))), expected)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("project", [True, False], ids=["projected", "plain"])
def test_similarity_matching(kind: str, project: bool) -> None:
    shape = SHAPES[kind]
    objective, h = bound(SimilarityMatching(project), shape, kind == "tokens"), output(shape)
    weight = objective.projection.weight if project else None
    mapped = h
    if project:
        mapped = {
            "vector": lambda: h @ weight.T,
            "map": lambda: F.conv2d(h, weight, padding=1),
            "series": lambda: F.conv1d(h, weight, padding=1),
            "tokens": lambda: h @ weight.T,
        }[kind]()
        assert objective.projection.bias is None
    maps = {"series": lambda v: v[..., None], "tokens": lambda v: v.transpose(1, 2)[..., None]}
    by_hand = local_error_signals.matching_loss(maps.get(kind, lambda v: v)(mapped), Y, CLASSES)
    torch.testing.assert_close(objective(View(h=h, context=Target(Y))), by_hand, rtol=1e-10, atol=0)


def test_what_needs_labels_refuses_values() -> None:
    for make in (SimilarityMatching, Goodness):
        with pytest.raises(ArgumentError):
            bound(make(), (6,), classes=None)


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("threshold", [None, 0.7])
@pytest.mark.parametrize("shape", [(6,), (3, 2, 2)])
def test_goodness(reduce: str, threshold: float | None, shape: tuple[int, ...]) -> None:
    h = torch.randn(8, *shape, dtype=torch.float64)
    by_hand = torch.stack([forward_forward_paper.goodness(v, reduce) for v in h])
    torch.testing.assert_close(goodness(h, reduce), by_hand)
    objective = bound(Goodness(reduce, threshold), shape)
    theta = threshold if threshold is not None else 2.0 if reduce == "mean" else float(h[0].numel())
    expected = forward_forward_paper.loss_of(h[:4], h[4:], reduce, theta)
    torch.testing.assert_close(objective(View(t=h, context=Target(Y))), expected, rtol=1e-10, atol=0)
    swapped = objective(View(t=torch.cat([h[4:], h[:4]]), context=Target(Y)))
    assert abs(float(swapped - expected)) > 1e-3
    all_labels = objective.scores(View(t=h[:6]))
    torch.testing.assert_close(all_labels, by_hand[:6].view(3, 2).T)


def test_a_mixture_is_the_weighted_sum_and_its_first_part_speaks() -> None:
    class Size(Objective):
        needs_labels = False

        def forward(self, view: View) -> Tensor:
            return view.h.square().mean()

    mix, h = bound(Mix((0.25, Size()), (2.0, Head(zero_init=False))), (6,)), output((6,))
    head = mix.parts[1]
    view = View(h=h, context=Target(Y))
    torch.testing.assert_close(mix(view), 0.25 * h.square().mean() + 2.0 * head(view))
    torch.testing.assert_close(mix.scores(view), head.scores(view))
    assert mix.needs_labels and not mix.needs_context and Mix((1.0, Size())).needs_labels is False
    assert isinstance(mix.parts, nn.ModuleList) and {n for n, _ in mix.named_parameters()} == {
        "parts.1.linear.weight", "parts.1.linear.bias",
    }  # fmt: skip


def test_an_objective_without_a_loss_says_what_to_write() -> None:
    with pytest.raises(ArgumentError, match="it has no loss"):
        Objective()(View())
