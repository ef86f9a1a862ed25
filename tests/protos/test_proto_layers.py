"""Stacks, MLPs and groups: what their options do in numbers, and what is refused."""

import copy
import pickle

import pytest
import torch
from torch import nn

from imprint.errors import ArgumentError, ShapeError
from imprint.protos import MLP, Aggregator, Auto, Elementwise, GRUStack, LSTMStack, RNNStack
from imprint.protos.activation import ACTIVATIONS, activation


def bound(proto, width=3, output=None, dtype=torch.float64):
    proto.bind(width, output, dtype=dtype)
    return proto


def run(proto, drive, state=None):
    return proto.step(drive, proto.init_state(len(drive)) if state is None else state)


def test_auto_is_one_value():
    for other in (copy.copy(Auto), copy.deepcopy(Auto), pickle.loads(pickle.dumps(Auto)), type(Auto)()):
        assert other is Auto
    assert repr(Auto) == "Auto"
    assert copy.deepcopy({"width": [3, Auto]})["width"][1] is Auto


@pytest.mark.parametrize("make", [GRUStack, LSTMStack, RNNStack])
def test_stacks_refuse(make):
    for options in ({"hidden": 0}, {"hidden": 4, "layers": 0}, {"hidden": 2.5}, {"hidden": 4, "layers": True}):
        with pytest.raises(ArgumentError, match="no size"):
            make(**options)
    for cadence in (0, -1, 1.5):
        with pytest.raises(ArgumentError, match="reset_every"):
            make(4, reset_every=cadence)
    with pytest.raises(ShapeError, match="constant"):
        make(1, layernorm=True)
    narrow = make(4, layernorm=True)
    with pytest.raises(ShapeError, match="constant"):
        narrow.bind(1)
    assert not narrow.bound and narrow.bind(2) == 4
    assert make(1).bind(1) == 1


def test_rnn_act():
    with pytest.raises(ArgumentError, match="tanh"):
        RNNStack(4, act="gelu")
    assert "'relu'" in repr(RNNStack(4, act="relu"))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_by_name(name):
    """The single layer has the activation only when it is asked for; then it is that one."""
    x = torch.linspace(-3, 3, 12, dtype=torch.float64).view(4, 3)
    torch.manual_seed(0)
    plain = bound(MLP([3, 4]))
    torch.manual_seed(0)
    asked = bound(MLP([3, 4], act=name))
    line = plain.layers[0][0](x)
    assert torch.equal(run(plain, x)[1][0], line)
    function = torch.nn.functional
    by_hand = {"identity": lambda v: v, "sigmoid": torch.sigmoid, "tanh": torch.tanh}.get(
        name, getattr(function, name, None)
    )
    assert torch.equal(run(asked, x)[1][0], by_hand(line))
    assert name == "identity" or not torch.allclose(run(asked, x)[1][0], line)


def test_activations_that_are_modules_are_not_shared():
    torch.manual_seed(0)
    own = nn.PReLU(init=0.1)
    for act in (own, nn.PReLU):
        proto = bound(MLP([3, 4, 5, 2], act=act))
        first, second = proto.layers[0][1], proto.layers[1][1]
        assert first is not second and first is not own and first.weight.dtype == torch.float64
        assert [n for n, _ in proto.named_parameters() if "0.1" in n or "1.1" in n] == [
            "layers.0.1.weight",
            "layers.1.1.weight",
        ]
    proto = bound(MLP([3, 4, 2], act=torch.square))
    x = torch.randn(2, 3, dtype=torch.float64)
    assert torch.equal(run(proto, x)[1][0], proto.layers[0][0](x).square())
    assert "square" in repr(activation(torch.square))


def test_mlp_resolves_auto():
    proto = MLP([Auto, 8, Auto])
    assert proto.auto_output and proto.input_dim is None and proto.output_dim is None
    assert bound(proto, 5, 7).layer_dims == [8, 7] and proto.input_dim == 5
    fixed = MLP([5, 8, 7])
    assert not fixed.auto_output and (fixed.input_dim, fixed.output_dim) == (5, 7)
    with pytest.raises(ShapeError, match="input has another width"):
        fixed.bind(6)
    with pytest.raises(ShapeError, match="output has another width"):
        fixed.bind(5, 8)
    assert fixed.bind(5, 7) == 7


@pytest.mark.parametrize(
    "options",
    [
        {"widths": [3]}, {"widths": []}, {"widths": [3, Auto, 4]}, {"widths": [3, 0]}, {"widths": [3, "4"]},
        {"widths": [3, 4], "act": "rleu"}, {"widths": [3, 4], "act": None}, {"widths": [3, 4], "act": 3},
        {"widths": [3, 4], "dropout": 1.0}, {"widths": [3, 4], "dropout": -0.1}, {"widths": [3, 4], "norm": "group"},
    ],
    ids=str,
)  # fmt: skip
def test_mlp_refuses(options):
    with pytest.raises(ArgumentError):
        MLP(**options)


def test_mlp_dropout_and_batchnorm_are_not_rowwise_in_training():
    torch.manual_seed(0)
    proto = bound(MLP([3, 50, 2], dropout=0.5))
    x = torch.ones(4, 3, dtype=torch.float64)
    hidden, out = run(proto, x)[1]
    assert not proto.rowwise and 0.3 < (hidden == 0).double().mean() < 0.9 and (out != 0).all()
    proto.eval()
    assert proto.rowwise and torch.equal(*(run(proto, x)[1][1] for _ in "ab"))
    proto = bound(MLP([3, 4, 2], norm="batch", act="identity"))
    hidden = run(proto, torch.randn(6, 3, dtype=torch.float64))[1][0]
    assert not proto.rowwise and torch.allclose(hidden.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-12)
    drives = torch.randn(2, 6, 3, dtype=torch.float64)
    _, (scanned, _) = proto.scan(drives, ())
    assert torch.allclose(scanned.mean(1), torch.zeros(2, 4, dtype=torch.float64), atol=1e-12), "tick by tick"


def test_groups_refuse():
    for mode in ("concat→lin", "max", 3, ""):
        with pytest.raises(ArgumentError, match="concat→linear"):
            Aggregator(mode, out_dim=3)
    for options in (("sum→linear",), ("sum", 3), ("concat→linear", 0)):
        with pytest.raises(ArgumentError, match="out_dim"):
            Aggregator(*options)
    for mode in ("sum→linear", "mean→linear"):
        with pytest.raises(ShapeError, match="one width") as error:
            Aggregator(mode, out_dim=3).bind({"a": 2, "b": 3})
        assert "concat→linear" in str(error.value)
    for op in ("abs→sub", "sub→", "", "sub→sub", "div", 7, None):
        with pytest.raises(ArgumentError, match="sub, add, mul, max, min, mean; then of the result abs, neg"):
            Elementwise(op)
    for op, group in (("sub", 3), ("sub", 1), ("add", 1), ("abs", 2)):
        with pytest.raises(ShapeError, match="number of operands"):
            Elementwise(op).bind({f"port{i}": 2 for i in range(group)})
    with pytest.raises(ShapeError, match="different widths"):
        Elementwise("add").bind({"a": 2, "b": 3})
    with pytest.raises(ShapeError, match="no positive integer"):
        Elementwise("add").bind({})


def test_elementwise_by_numbers():
    drive = {"first": torch.tensor([[1.0, 5.0]]), "second": torch.tensor([[3.0, 4.0]])}
    want = {
        "sub": [-2, 1], "sub->abs": [2, 1], "add": [4, 9], "mul": [3, 20], "max": [3, 5], "min": [1, 4],
        "mean": [2, 4.5], "sub → square": [4, 1], "sub→neg→relu": [2, 0],
    }  # fmt: skip
    for op, numbers in want.items():
        proto = Elementwise(op)
        proto.bind({"first": 2, "second": 2})
        assert proto.step(drive, ())[1][0].tolist() == [numbers], op
