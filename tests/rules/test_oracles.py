"""Every rule, attached to an unmodified model, equals its paper done by hand; wrong versions do not."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import Tensor, nn

import imprint

from references import backprop, drtp, forward_forward_paper, local_error_signals, nets, sigprop_attached
from references.attached import OPTIMIZERS, OTHER, SAME, Run

setups = pytest.mark.parametrize(
    "net,norm,optimizer",
    [(net, norm, opt) for net in ("dense", "conv") for norm in (False, True) for opt in OPTIMIZERS],
    ids=lambda v: {True: "norm", False: "plain"}.get(v, v) if isinstance(v, bool) else v,
)


def local_errors(run: Run, *, control: str = "", beta: float, head: bool = True, project: bool = True) -> nn.Sequential:
    """The reference of pred, sim and predsim, from the heads that `run` started with."""
    parts = copy.deepcopy(run.parts)
    both = [list(p.parts) if isinstance(p, imprint.objectives.Mix) else [p] for p in parts]
    heads = [p[0].linear if head else None for p in both]
    projections = [p[-1].projection if project and beta else None for p in both]
    trained = run.reference(
        local_error_signals.train,
        heads,
        projections,
        beta=beta,
        classes=nets.CLASSES,
        limit=nets.LIMIT,
        control=control,
    )
    if not control:
        ours = [u.unit.objective for u in run.manager.units.values() if not u.open]
        for objective, part in zip(ours, parts, strict=True):
            if list(part.parameters()):
                assert nets.furthest(objective, part) < SAME
    return trained


@setups
@pytest.mark.parametrize("bias,zero_init", [(True, True), (False, False)], ids=["pred", "mono_forward"])
def test_local_ce(net: str, norm: bool, optimizer: str, bias: bool, zero_init: bool) -> None:
    run = Run("local_ce", net, norm, optimizer, bias=bias, zero_init=zero_init, limit=nets.LIMIT)
    pred = functools.partial(local_errors, run, beta=0.0, project=False)
    run.equals(pred())
    run.equals(pred(control="deferred"))
    run.differs(pred, "joint", "after")


@setups
def test_sim(net: str, norm: bool, optimizer: str) -> None:
    run = Run("sim", net, norm, optimizer)
    sim = functools.partial(local_errors, run, beta=1.0, head=False)
    run.equals(sim())
    run.differs(sim, "joint", "after", "uncentred")


def test_sim_without_a_projection() -> None:
    run = Run("sim", "conv", True, "sgd", project=False)
    run.equals(local_errors(run, beta=1.0, head=False, project=False))


@setups
def test_predsim(net: str, norm: bool, optimizer: str) -> None:
    run = Run("predsim", net, norm, optimizer, limit=nets.LIMIT)
    predsim = functools.partial(local_errors, run, beta=0.99)
    run.equals(predsim())
    run.differs(predsim, "swapped", "joint", "after", "uncentred")


@setups
@pytest.mark.parametrize("reduce,threshold", [("mean", None), ("sum", None), ("sum", 1.5)])
def test_forward_forward(net: str, norm: bool, optimizer: str, reduce: str, threshold: float | None) -> None:
    run = Run("forward_forward", net, norm, optimizer, nn.ReLU, goodness=reduce, threshold=threshold)
    theta = 2.0 if threshold is None and reduce == "mean" else threshold
    by_hand = functools.partial(
        run.reference, forward_forward_paper.train, classes=nets.CLASSES, high=float(run.batches[0][0].max()),
        reduce=reduce, threshold=theta,
    )  # fmt: skip
    run.equals(by_hand())
    if not norm:
        run.equals(by_hand(control="two passes"))
    run.differs(by_hand, "any label", "joint", "after", norm="length")


def test_forward_forward_without_normalisation() -> None:
    run = Run("forward_forward", "dense", False, "adam", nn.ReLU, normalize=False)
    high = float(run.batches[0][0].max())
    run.equals(run.reference(forward_forward_paper.train, classes=nets.CLASSES, high=high, norm=""))


@setups
def test_drtp(net: str, norm: bool, optimizer: str) -> None:
    run = Run("drtp", net, norm, optimizer)
    feedback = [p.feedback for p in run.parts]
    by_hand = functools.partial(run.reference, drtp.train, feedback)
    run.equals(by_hand())
    run.differs(by_hand, "sum", "next label", "joint", "after")


@setups
@pytest.mark.parametrize("loss", ["v1", "v9", "v14", "v15"])
def test_sigprop(net: str, norm: bool, optimizer: str, loss: str) -> None:
    similarity, temperature = {"v1": ("cosine", 0.1), "v9": ("dot", 0.7), "v14": ("l2", 0.5), "v15": ("cosine", 0.3)}[
        loss
    ]
    options = {"loss": loss, "similarity": similarity, "temperature": temperature}
    run = Run("sigprop", net, norm, optimizer, **options, **({"k": 2} if loss == "v15" else {}))
    context = run.signal.weight0.detach()
    by_hand = functools.partial(
        run.reference, sigprop_attached.train, context, loss=loss, k=2, similarity=similarity, temperature=temperature
    )
    run.equals(by_hand())
    run.differs(by_hand, "joint", "after", "next label", "data only", loss="v14" if loss == "v1" else "v1")
    if norm:
        run.differs(by_hand, "statistics")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_sigprop_with_a_learned_context(optimizer: str) -> None:
    run = Run("sigprop", "conv", False, optimizer, learned=True)
    context = run.signal.weight0.detach().clone()
    other = context.clone()
    by_hand = functools.partial(run.reference, sigprop_attached.train, context)
    run.equals(by_hand(learned=True))
    ours = run.manager.context.stream.weight0.detach()
    assert float((ours - context.detach()).abs().max()) < SAME < 1e-3 < float((ours - other).abs().max())
    run.differs(functools.partial(run.reference, sigprop_attached.train, other), learned=False)


@setups
def test_backprop(net: str, norm: bool, optimizer: str) -> None:
    run = Run("backprop", net, norm, optimizer)
    trained = copy.deepcopy(run.start)
    backprop.train(trained, run.batches, run.descent)
    run.equals(trained)


@pytest.mark.parametrize("net", ["dense", "conv"])
def test_without_layers_the_classifier_is_a_unit_that_learns_from_the_task(net: str) -> None:
    """Sequentials are opened: layer, norm and activation are one unit each, and the numbers are the same."""
    run = Run("local_ce", net, True, "sgd", layers=None, limit=nets.LIMIT)
    assert list(run.manager.units) == ["0.0", "1.0", "2.0", "3.0" if net == "dense" else "3.1"]
    assert [a.open for a in run.manager.units.values()] == [False, False, False, True]
    pred = functools.partial(local_errors, run, beta=0.0, project=False)
    run.equals(pred())
    assert nets.furthest(run.model, pred(control="joint")) > OTHER


def test_without_layers_forward_forward_normalises_the_classifier_too() -> None:
    run = Run("forward_forward", "dense", False, "sgd", nn.ReLU, layers=None)
    by_hand = functools.partial(
        run.reference, forward_forward_paper.train, classes=nets.CLASSES, high=float(run.batches[0][0].max())
    )
    run.equals(by_hand(norm_last="rms"))
    assert nets.furthest(run.model, by_hand()) > OTHER


def dense_layers(model: nn.Module) -> list[nn.Linear]:
    return [m for m in copy.deepcopy(model).modules() if isinstance(m, nn.Linear)]


def weights(layers: list[nn.Linear]) -> dict[str, Tensor]:
    return {f"{i}.{k}": v for i, layer in enumerate(layers) for k, v in layer.state_dict().items()}


def test_mono_forward_with_every_derivative_written_out() -> None:
    run = Run("local_ce", "dense", False, "sgd", bias=False, zero_init=False)
    *layers, _ = dense_layers(run.start)
    heads = [p.linear.weight.detach().clone() for p in run.parts]
    local_error_signals.mono_forward_dense(layers, heads, run.batches, 0.05)
    *ours, _ = dense_layers(run.model)
    assert nets.furthest(weights(ours), weights(layers)) < SAME
    x = run.batches[0][0]
    by_hand = local_error_signals.mono_forward_predict(layers, heads, x)
    torch.testing.assert_close(run.manager.predict(x, by="local"), by_hand, rtol=SAME, atol=1e-12)


def test_drtp_with_every_derivative_written_out() -> None:
    run = Run("drtp", "dense", False, "sgd")
    *layers, _ = dense_layers(run.start)
    drtp.train_dense(layers, [p.feedback for p in run.parts], run.batches, 0.05)
    *ours, _ = dense_layers(run.model)
    assert nets.furthest(weights(ours), weights(layers)) < SAME


def test_forward_forward_with_every_derivative_written_out() -> None:
    run = Run("forward_forward", "dense", False, "sgd", nn.ReLU)
    *layers, _ = dense_layers(run.start)
    high = float(run.batches[0][0].max())
    torch.manual_seed(7)
    forward_forward_paper.train_dense(layers, run.batches, 0.05, nets.CLASSES, high, 2.0)
    *ours, _ = dense_layers(run.model)
    assert nets.furthest(weights(ours), weights(layers)) < SAME
    x = run.batches[0][0]
    units = list(copy.deepcopy(run.model))[:3]  # a copy is plain
    by_hand = forward_forward_paper.label_goodness(units, x, nets.CLASSES, high, "mean")
    torch.testing.assert_close(run.manager.predict(x, by="local"), by_hand, rtol=SAME, atol=1e-12)


def test_backprop_with_every_derivative_written_out() -> None:
    run = Run("backprop", "dense", False, "sgd")
    layers, wrong = dense_layers(run.start), dense_layers(run.start)
    backprop.train_dense(layers, run.batches, 0.05)
    assert nets.furthest(weights(dense_layers(run.model)), weights(layers)) < SAME
    backprop.train_dense(wrong, run.batches, 0.05, "fixed")
    assert nets.furthest(weights(dense_layers(run.model)), weights(wrong)) > OTHER
