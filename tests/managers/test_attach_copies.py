"""The class swap: copies and pickles are plain models, weights load both ways, hooks run once."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import imprint
from imprint.errors import CoverageError, StateError
from imprint.managers.intercept import AGENT, Attached

K, B = 3, 6


class Own(nn.Linear):
    """A layer with its own ideas about copying."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__(n, m)
        self.cache: list[int] = [1]

    def __deepcopy__(self, memo: dict[int, Any]) -> Own:
        made = type(self)(self.in_features, self.out_features)
        made.load_state_dict(self.state_dict())
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "cache"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.cache = []

    def doubled(self) -> Own:
        made = type(self)(self.in_features, self.out_features)
        made.load_state_dict({k: 2 * v for k, v in self.state_dict().items()})
        return made


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Identity()
        self.rnn = nn.GRU(4, 5, batch_first=True)
        self.block = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.ReLU())
        self.own = Own(5, 5)
        self.head = nn.Linear(5, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.own(self.block(self.rnn(self.embed(x))[0][:, -1])))


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(B, 7, 4), torch.randint(K, (B,))


def attached() -> tuple[Net, imprint.Manager]:
    model = Net()
    manager = imprint.attach(model, "sigprop", num_classes=K, context_at="embed")
    manager.step(*batch())
    return model, manager


def is_plain(model: nn.Module) -> bool:
    return not any(isinstance(m, Attached) or AGENT in m.__dict__ for m in model.modules())


def round_trip(model: nn.Module, how: str) -> nn.Module:
    if how == "deepcopy":
        return copy.deepcopy(model)
    if how.startswith("pickle"):
        return pickle.loads(pickle.dumps(model, int(how[-1])))
    file = io.BytesIO()
    torch.save(model, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


@pytest.mark.parametrize("how", ["deepcopy", "pickle 2", "pickle 5", "torch.save"])
def test_copies_are_plain_models_that_run_alike(how: str) -> None:
    model, manager = attached()
    made = round_trip(model, how)
    assert is_plain(made) and not is_plain(model) and type(made) is Net and type(made.block[0]) is nn.Linear
    x, y = batch()
    model.eval(), made.eval()
    assert torch.equal(made(x), model(x))
    model.train(), made.train()
    before = {k: v.clone() for k, v in made.state_dict().items()}
    manager.step(x, y)  # the attached model goes on learning, the copy does not notice
    assert all(torch.equal(v, before[k]) for k, v in made.state_dict().items())
    assert not torch.equal(model.own.weight, made.own.weight)
    imprint.attach(made, "local_ce").step(x, y)


def test_own_copying_is_respected() -> None:
    model, _ = attached()
    assert copy.deepcopy(model).own.cache == [1] and pickle.loads(pickle.dumps(model)).own.cache == []
    assert type(copy.deepcopy(model.own)) is Own and type(pickle.loads(pickle.dumps(model.own))) is Own


def test_an_object_made_from_an_attached_layers_class_runs_plainly() -> None:
    model, _ = attached()
    made, x = model.own.doubled(), torch.randn(2, 5)
    assert torch.allclose(made(x), 2 * nn.functional.linear(x, model.own.weight, model.own.bias))
    assert type(copy.deepcopy(made)) is Own


def test_shallow_copies() -> None:
    model, manager = attached()
    x, y = batch()
    layer = copy.copy(model.block[0])
    assert is_plain(layer) and layer.weight is model.block[0].weight
    assert torch.equal(layer(torch.ones(2, 5)), nn.functional.linear(torch.ones(2, 5), layer.weight, layer.bias))
    whole = copy.copy(model)  # shares its layers, as shallow copies of plain modules do
    assert whole.block is model.block
    model.eval()
    assert torch.equal(whole.eval()(x), model(x))
    model.train()
    manager.step(x, y)


def test_parametrized_layers_copy_without_their_manager() -> None:
    model = nn.Sequential(spectral_norm(nn.Linear(4, 4)), nn.Linear(4, K))
    manager = imprint.attach(model, "local_ce")
    manager.step(torch.randn(B, 4), torch.randint(K, (B,)))
    made = copy.deepcopy(model)
    assert is_plain(made) and not any(isinstance(v, imprint.Manager) for v in gc.get_referrers(made))
    model.eval(), made.eval()
    assert torch.equal(made(torch.ones(1, 4)), model(torch.ones(1, 4)))
    assert type(manager.detach()[0]).__name__ == "ParametrizedLinear"


def test_state_dicts_load_both_ways_strictly() -> None:
    plain, (model, manager) = Net(), attached()
    assert list(model.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(model.state_dict(), strict=True)
    x, y = batch()
    assert torch.equal(plain.eval()(x), manager.predict(x))
    other = Net()
    model.load_state_dict(other.state_dict(), strict=True)
    assert torch.equal(other.eval()(x), manager.predict(x))
    manager.step(x, y)
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert [n for n, _ in model.named_modules()] == [n for n, _ in plain.named_modules()]
    assert repr(model) == repr(plain)


def test_detach_returns_the_very_model() -> None:
    model, manager = attached()
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    parameters = list(map(id, model.parameters()))
    assert manager.detach() is model and is_plain(model) and type(model.own) is Own
    assert parameters == list(map(id, model.parameters()))
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert manager.detach() is model  # a second time does nothing
    for call in (
        lambda: manager.step(*batch()),
        lambda: manager.bind(*batch()),
        lambda: manager.predict(batch()[0], by="local"),
    ):
        with pytest.raises(StateError, match=r"detached[\s\S]*attach"):
            call()
    imprint.attach(model, "local_ce").step(*batch())


def test_a_model_is_freed_of_a_manager_that_is_gone() -> None:
    model = Net()
    imprint.attach(model, "local_ce")
    assert imprint.managers.detach(model) is model and is_plain(model)


def test_an_attached_model_can_be_collected() -> None:
    model, manager = attached()
    refs = [weakref.ref(model), weakref.ref(manager), weakref.ref(model.own)]
    del model, manager
    gc.collect()
    assert [ref() for ref in refs] == [None] * 3


def test_instances_keep_their_class() -> None:
    model, _ = attached()
    assert isinstance(model.own, Own) and isinstance(model.own, nn.Linear) and type(model.own).__name__ == "Own"
    assert type(model.own).__module__ == Own.__module__
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    imprint.attach(nn.Sequential(a, b), "local_ce")
    assert type(a) is type(b)


@pytest.mark.parametrize("rule", ["local_ce", "backprop"])
def test_hooks_run_once_around_what_the_unit_emits(rule: str) -> None:
    model = Net()
    seen: list[str] = []
    for name, layer in model.named_modules():
        layer.register_forward_pre_hook(lambda m, a, name=name: seen.append(f"before {name}"))
        layer.register_forward_hook(lambda m, a, out, name=name: seen.append(name))
    manager = imprint.attach(model, rule, layers="rnn|block|own|head")
    x, y = batch()
    manager.bind(x, y)
    seen.clear()
    manager.step(x, y)
    expected = ["embed", "rnn", "block", *(f"block.{i}" for i in range(3)), "own", "head", ""]
    assert sorted(seen) == sorted([*expected, *(f"before {n}" for n in expected)])
    seen.clear()
    manager.predict(x)
    assert len(seen) == 2 * len(expected)
    manager.detach()
    seen.clear()
    model(x)
    assert len(seen) == 2 * len(expected)


def test_hooks_may_change_what_goes_in_and_out() -> None:
    models = [nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, K)).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    models[0][0].register_forward_pre_hook(lambda m, args: (2 * args[0],))
    models[0][0].register_forward_hook(lambda m, args, out: 3 * out)
    manager = imprint.attach(models[0], "local_ce", layers=["0", "2"])
    x, y = torch.randn(B, 4).double(), torch.randint(K, (B,))
    expected = models[1][2](torch.tanh(3 * models[1][0](2 * x)))
    assert torch.allclose(manager.step(x, y), expected, rtol=0, atol=1e-12)


def test_a_hook_that_changes_what_a_joined_layer_gets_is_refused() -> None:
    """The joined layer has run already, inside the unit; after bind, too."""
    for bound in (False, True):
        model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, K))
        manager = imprint.attach(model, "local_ce")
        x, y = torch.randn(B, 4), torch.randint(K, (B,))
        if bound:
            manager.step(x, y)
        handle = model[0].register_forward_hook(lambda m, args, out: 3 * out)
        with pytest.raises(CoverageError, match=r"unit '0'[\s\S]*'1'[\s\S]*layers=\['0'"):
            manager.step(x, y)
        handle.remove()
        manager.step(x, y)


def test_hooks_of_the_context_pass_are_those_of_the_context() -> None:
    """With a context the model runs twice a step, first on the K context inputs; its hooks see both."""
    model = Net()
    rows: list[int] = []
    manager = imprint.attach(model, "sigprop", num_classes=K)
    manager.bind(*batch())
    model.own.register_forward_hook(lambda m, args, out: rows.append(len(out)))
    manager.step(*batch())
    assert rows == [K, B]


def test_a_backward_hook_of_a_backprop_unit_fires() -> None:
    model = Net()
    grads: list[Tensor] = []
    model.own.register_full_backward_hook(lambda m, g_in, g_out: grads.append(g_out[0]))
    imprint.attach(model, "backprop").step(*batch())
    assert len(grads) >= 1 and grads[-1].shape == (B, 5)
    local = Net()
    fired: list[int] = []
    local.own.register_full_backward_hook(lambda m, g_in, g_out: fired.append(1))
    imprint.attach(local, "local_ce").step(*batch())
    assert not fired  # its output carries no gradient


def test_context_at_is_given_back_too() -> None:
    model, manager = attached()
    assert isinstance(model.embed, Attached)
    manager.detach()
    assert type(model.embed) is nn.Identity


def test_traced_graph_modules_can_be_attached() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(4, 5), nn.Linear(5, K)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.a(x)))

    plain = Small()
    model = torch.fx.symbolic_trace(copy.deepcopy(plain))
    x, y = torch.randn(B, 4), torch.randint(K, (B,))
    first, second = imprint.attach(plain, "local_ce"), imprint.attach(model, "local_ce")
    for _ in range(2):
        assert torch.equal(first.step(x, y), second.step(x, y))
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_copied_manager_holds_a_plain_model_and_says_so() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    manager = imprint.attach(model, "local_ce", num_classes=3)
    x, y = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    manager.step(x, y)
    twin = copy.deepcopy(manager)
    assert type(twin.model[0]) is nn.Linear and torch.equal(twin.model(x), model(x))
    with pytest.raises(StateError, match="was detached from this manager"):
        twin.step(x, y)
    again = imprint.attach(twin.model, "local_ce", num_classes=3)
    again.load_state_dict(manager.state_dict())
    manager.step(x, y), again.step(x, y)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.model.parameters(), strict=True))


def test_the_normalisation_of_forward_forward_is_no_part_of_the_detached_model() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3))
    manager = imprint.attach(model, "forward_forward", num_classes=3)
    x = torch.randn(6, 4)
    manager.step(x, torch.tensor([0, 1, 2, 0, 1, 2]))
    attached, marked = model(x), manager.predict(x)
    detached = manager.detach()(x)
    assert (attached - detached).abs().max() > 1e-3 and (marked - detached).abs().max() > 1e-3
