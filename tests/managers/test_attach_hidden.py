"""Tensors inside objects that torch does not look into: cut where it can be, refused at bind where it cannot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import imprint
from imprint.diagnostics import audit_isolation
from imprint.errors import DtypeError, ShapeError

K, B = 3, 8


@dataclass
class Out:
    h: Tensor
    note: str = ""


@dataclass
class Known:
    """torch is told of it."""

    h: Tensor
    note: str = ""


torch.export.register_dataclass(Known)


class Entries(dict[str, Tensor]):
    """As the outputs of some libraries are."""


CONTAINERS: dict[str, Any] = {
    "dataclass": Out, "dict subclass": lambda h: Entries(h=h), "known dataclass": Known,
    "beside a tensor": lambda h: (h.mean(), Out(h)), "detached beside a tensor": lambda h: (h, Out(h.detach())),
}  # fmt: skip


class First(nn.Module):
    def __init__(self, container: str) -> None:
        super().__init__()
        self.linear, self.make = nn.Linear(4, 5), CONTAINERS[container]

    def forward(self, x: Tensor) -> Any:
        return self.make(self.linear(x).tanh())


class Second(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 5)

    def forward(self, given: Any) -> Tensor:
        given = given[1] if isinstance(given, tuple) else given
        return self.linear(given["h"] if isinstance(given, dict) else given.h).tanh()


class Net(nn.Module):
    def __init__(self, container: str) -> None:
        super().__init__()
        self.first, self.second, self.head = First(container), Second(), nn.Linear(5, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)))


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(B, 4), torch.randint(K, (B,))


@pytest.mark.parametrize("rule", ["local_ce", "sigprop"])
@pytest.mark.parametrize("container", ["dataclass", "dict subclass", "beside a tensor"])
def test_a_unit_that_hides_its_graph_is_refused(container: str, rule: str) -> None:
    model = Net(container)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    manager = imprint.attach(model, rule, num_classes=K)
    name = "Entries" if container == "dict subclass" else "Out"
    with pytest.raises(DtypeError, match=rf"unit 'first': it returns tensors inside '{name}'[\s\S]*register_"):
        manager.step(*batch())
    assert manager.bound is None and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("container", ["known dataclass", "detached beside a tensor"])
def test_what_can_be_cut_is_cut(container: str) -> None:
    manager = imprint.attach(Net(container), "local_ce", num_classes=K)
    manager.step(*batch())
    assert audit_isolation(manager, *batch()).ok
    kept = []
    manager.model.second.register_forward_pre_hook(lambda m, args: kept.append(args[0]))
    manager.step(*batch())
    given = kept[0].h if container == "known dataclass" else kept[0][1].h
    assert not given.requires_grad


def test_a_unit_that_is_given_a_hidden_graph_is_refused() -> None:
    """The stem is outside the units: its output would be reached from inside the second one."""
    manager = imprint.attach(Net("dataclass"), "local_ce", layers=["second"], num_classes=K, strict=False)
    with pytest.raises(DtypeError, match=r"unit 'second': it is given tensors inside 'Out'"):
        manager.step(*batch())


@pytest.mark.parametrize("rule", ["local_ce", "backprop"])
def test_a_model_that_hides_its_output_is_refused(rule: str) -> None:
    class Wraps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 5), nn.Linear(5, K)

        def forward(self, x: Tensor) -> Out:
            return Out(self.head(self.body(x)))

    manager = imprint.attach(Wraps(), rule, num_classes=K, task_loss=lambda out, y: out.h.square().mean())
    with pytest.raises(DtypeError, match=r"the model's output: it holds tensors inside 'Out'"):
        manager.step(*batch())


def test_units_without_boundary_may_hand_on_anything() -> None:
    manager = imprint.attach(Net("dataclass"), "backprop", num_classes=K)
    before = manager.model.first.linear.weight.clone()
    manager.step(*batch())
    assert not torch.equal(manager.model.first.linear.weight, before)


def test_packed_sequences_are_named_tuples() -> None:
    """torch looks into them: they are cut."""
    pack = torch.nn.utils.rnn.pack_padded_sequence
    packed = pack(torch.randn(2, 3, 4, requires_grad=True) * 2, torch.tensor([3, 2]), batch_first=True)
    assert not imprint.credit.detach(packed).data.requires_grad and packed.data.requires_grad


class Packs(nn.Module):
    """It packs its input, runs a recurrent layer, and pads again."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(4, 5, batch_first=True), nn.Linear(5, K)

    def forward(self, x: Tensor) -> Tensor:
        pack, pad = torch.nn.utils.rnn.pack_padded_sequence, torch.nn.utils.rnn.pad_packed_sequence
        packed = pack(x, torch.full((len(x),), 3), batch_first=True)
        return self.head(pad(self.rnn(packed)[0], batch_first=True)[0].mean(1))


def test_a_unit_of_packed_sequences_has_no_batch_so_the_layer_around_it_is_the_unit() -> None:
    x, y = torch.randn(B, 3, 4), torch.randint(K, (B,))
    with pytest.raises(ShapeError, match=r"unit 'rnn': no dimension of its output is the batch[\s\S]*around it"):
        imprint.attach(Packs(), "local_ce", num_classes=K).step(x, y)
    inside = nn.Sequential(Packs(), nn.Linear(K, K))
    before = inside[0].rnn.weight_hh_l0.clone()
    manager = imprint.attach(inside, "local_ce", layers=["0"], num_classes=K)
    manager.step(x, y), manager.step(x, y)
    assert not torch.equal(inside[0].rnn.weight_hh_l0, before)
