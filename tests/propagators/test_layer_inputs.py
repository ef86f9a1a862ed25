"""What an objective sees as a unit's input and output."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from imprint.errors import DtypeError
from imprint.objectives import Objective, Target, View
from imprint.propagators.layer import Call, LayerUnit, first_floating, primary

A, B, I = torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([3])
TREES: list[Any] = [
    A, I, None, (), {}, (I, A, B), [I, B, A], {"b": I, "a": B, "c": A}, ((I, None), {"x": [None, (B, A)]}),
    OrderedDict(b=I, a=A), (("text", 3), {"x": I}), nn.Parameter(A), ({}, (I,), [[B]]),
]  # fmt: skip


@pytest.mark.parametrize("tree", TREES, ids=repr)
def test_the_first_floating_tensor_is_that_of_torchs_own_walk(tree: Any) -> None:
    leaves = [v for v in tree_flatten(tree)[0] if isinstance(v, Tensor) and v.is_floating_point()]
    assert first_floating(tree) is (leaves[0] if leaves else None)
    if not leaves:
        with pytest.raises(DtypeError, match="no floating tensor"):
            primary(tree, "here")


class Nothing(Objective):
    def forward(self, view: View) -> Tensor:
        return view.h.sum()


@pytest.mark.parametrize("named", [False, True])
def test_a_mask_in_front_is_not_taken_for_the_input(named: bool) -> None:
    unit = LayerUnit("a", [("a", nn.Linear(1, 1))], Nothing())
    mask, h, out = torch.ones(4, dtype=torch.bool), torch.randn(4, 2), torch.randn(4, 3)
    call = Call((), {"mask": mask, "h": h}) if named else Call((mask, h), {})
    assert unit.view((out, None), call, Target(None)).x is h
    ids = torch.arange(4)
    assert unit.view((out, None), Call((ids,), {}), Target(None)).x is ids
