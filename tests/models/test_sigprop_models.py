"""Forward, LoopBack and ForwardLoopBack against the passes done by hand; how models are called."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imprint import errors, loss, models, propagators, signals

from references import sigprop as reference

CLASSES, WIDTH = 3, 5
SGD = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)


def error(out: Tensor, y: Tensor) -> Tensor:
    """Softmax minus one-hot."""
    return out.softmax(1) - torch.eye(CLASSES, dtype=out.dtype)[y]


def modules() -> list[nn.Module]:
    block = lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Tanh())
    first = nn.Linear(4, WIDTH)
    made = [nn.Linear(CLASSES, WIDTH), first, block(), block(), nn.Linear(WIDTH, CLASSES)]
    return [m.double() for m in made]


class OnehotOrError(signals.Formatter):
    """The labels of the first pass become one-hot rows; the error of the second has their shape already."""

    def forward(self, input):
        h0, t0 = input
        if t0 is not None and not t0.is_floating_point():
            t0 = torch.eye(CLASSES, dtype=h0.dtype)[t0]
        return h0, t0


def by_imprint(cls: type, parts: list[nn.Module], data: list[tuple[Tensor, Tensor]], value) -> list[Tensor]:
    context, first, *units, head = parts
    module = nn.Sequential(OnehotOrError(), signals.ProjectionContextInput(context, first, (CLASSES,), (WIDTH,)))
    signal = propagators.signals.Loss(module, SGD(module.parameters()), value)
    chain = nn.Sequential(*(propagators.Loss(u, SGD(u.parameters()), value) for u in units))
    chain.append(propagators.Identity(head))
    model = cls(chain, signal) if cls is models.Forward else cls(chain, signal, error)
    outer = SGD(model.parameters())
    outs = []
    for x, y in data:
        outs.append(model(x, y))
        outer.zero_grad()
        F.cross_entropy(outs[-1], y).backward()
        outer.step()
    return outs


def by_hand(cls: type, parts: list[nn.Module], data: list[tuple[Tensor, Tensor]], value) -> list[Tensor]:
    context, first, *units, head = parts
    onehot = lambda y: torch.eye(CLASSES, dtype=torch.float64)[y]
    signal = reference.Unit(first, value, SGD([*context.parameters(), *first.parameters()]))
    chain = reference.Chain(
        context, first, signal, [reference.Unit(u, value, SGD(u.parameters())) for u in units],
        reference.Unit(head, None, SGD(head.parameters())), (WIDTH,), onehot,
    )  # fmt: skip
    outs = []
    for x, y in data:
        if cls is models.LoopBack:
            before = chain.infer(x)
        elif (
            cls is models.ForwardLoopBack
        ):  # a whole learning pass, but the classifier's, which learns after the second
            before = chain.pass_(x, onehot(y), y)
        outs.append(chain.step(x, y) if cls is models.Forward else chain.step(x, y, error(before.detach(), y)))
    return outs


@pytest.mark.parametrize("cls", [models.Forward, models.LoopBack, models.ForwardLoopBack])
@pytest.mark.parametrize("kind", ["v9", "v14"])
def test_a_model_equals_its_passes_done_by_hand(cls: type, kind: str) -> None:
    ours, naive = {
        "v9": (loss.v9_input_target_max_all, reference.v9),
        "v14": (loss.v14_input_target_max_rand, reference.v14),
    }[kind]
    parts = modules()
    data = [(torch.randn(6, 4).double(), torch.randint(CLASSES, (6,))) for _ in range(5)]

    def trained(run, cls: type, value) -> tuple[nn.ModuleList, list[Tensor]]:
        copy = nn.ModuleList(reference.clone(parts))
        torch.manual_seed(2)
        return copy, run(cls, list(copy), data, value)

    (a, outs), (b, expected) = trained(by_imprint, cls, ours), trained(by_hand, cls, naive)
    torch.testing.assert_close(outs, expected, rtol=1e-9, atol=1e-10)
    for (name, p), q in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-11, msg=name)
    for other in {models.Forward, models.LoopBack, models.ForwardLoopBack} - {cls}:
        wrong, _ = trained(by_hand, other, naive)
        assert (
            max(float((p - q).detach().abs().max()) for p, q in zip(a.parameters(), wrong.parameters(), strict=True))
            > 1e-4
        )


@pytest.mark.parametrize("cls", [models.LoopBack, models.ForwardLoopBack])
def test_without_a_context_there_is_one_pass_and_no_error(cls: type) -> None:
    asked = []

    def watched(out: Tensor, y: Tensor) -> Tensor:
        asked.append((out.requires_grad, torch.is_grad_enabled()))
        return error(out, y)

    context, first, one, two, head = modules()
    signal = propagators.signals.Fixed(signals.ProjectionContextInput(context, first, (CLASSES,), (WIDTH,)))
    model = cls(propagators.Identity(nn.Sequential(one, two, head)), signal, watched).eval()
    x, y = torch.randn(6, 4).double(), torch.arange(6) % 3
    expected = head(two(one(first(x))))
    torch.testing.assert_close(model(x, None), expected)
    assert asked == []
    if cls is models.LoopBack:
        torch.testing.assert_close(model(x, y), expected)
        assert asked == [(False, False)]


class Kept(models.Model):
    """A user's model whose forward takes one tuple and says what it got."""

    def forward(self, input):
        self.got = input
        return input


def test_models_are_called_with_two_arguments_one_tuple_or_input_alone() -> None:
    model = Kept(nn.Identity(), nn.Identity())
    x, y = torch.randn(2, 3), torch.arange(2)
    for call in (lambda: model(x, y), lambda: model((x, y)), lambda: model([x, y])):
        got = call()
        assert isinstance(got, tuple) and got[0] is x and got[1] is y
    for call in (lambda: model(x), lambda: model(x, None), lambda: model((x, None))):
        assert call()[0] is x and model.got[1] is None
    several = (x, x)
    assert model(several, y)[0] is several
    hooked = []
    model.register_forward_hook(lambda module, args, out: hooked.append(args))
    model(x, y)
    assert hooked == [((x, y),)]
    with pytest.raises(errors.ArgumentError, match="one input and one context"):
        model(x, y, y)
    with pytest.raises(errors.ArgumentError, match="one input and one context"):
        model((x, y, y))
    with pytest.raises(errors.ArgumentError, match="no torch module"):
        models.Forward(nn.Identity(), lambda x: x)
    with pytest.raises(errors.ArgumentError, match="not callable"):
        models.LoopBack(nn.Identity(), nn.Identity(), None)


def test_parameters_are_all_there_under_plain_names() -> None:
    context, first, one, two, head = modules()
    generator = signals.ProjectionContextInput(context, first, (CLASSES,), (WIDTH,))
    signal = propagators.signals.Loss(generator, None, loss.hebbian)
    chain = nn.Sequential(propagators.Loss(one, None, loss.hebbian), propagators.Fixed(two), propagators.Identity(head))
    model = models.Forward(chain, signal)
    names = [n for n, _ in model.named_parameters()]
    assert len(names) == len({id(p) for m in (context, first, one, two, head) for p in m.parameters()})
    assert "signal.module.module_context.weight" in names and "model.1.module.0.weight" in names
    assert set(model.state_dict()) >= set(names) and "model.0.module.1.running_mean" in model.state_dict()


def test_evaluation_with_and_without_a_context_gives_the_same_output_and_writes_nothing() -> None:
    torch.manual_seed(0)
    context, first, one, two, head = modules()
    module = nn.Sequential(OnehotOrError(), signals.ProjectionContextInput(context, first, (CLASSES,), (WIDTH,)))
    signal = propagators.signals.Loss(module, SGD(module.parameters()), loss.v9_input_target_max_all)
    links = [propagators.Loss(u, SGD(u.parameters()), loss.v9_input_target_max_all) for u in (one, two)]
    model = models.Forward(nn.Sequential(*links, propagators.Identity(head)), signal)
    x, y = torch.randn(6, 4).double(), torch.arange(6) % 3
    model(x, y)
    model.eval()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    found = [link.last_loss for link in links]
    assert torch.equal(model(x, y), model(x, None))
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    for link, before in zip(links, found, strict=True):
        assert not link.last_loss.requires_grad and not torch.equal(link.last_loss, before)
    model.train()
    model(x, None)  # statistics of the data alone, once; no weight moves
    for k, v in model.state_dict().items():
        moved = not torch.equal(v, state[k])
        assert moved == (".1.running" in k or "tracked" in k), k
    assert int(model.state_dict()["model.0.module.1.num_batches_tracked"]) == 2 + 1
