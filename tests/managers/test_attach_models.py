"""Unmodified models: after several steps every weight, head, and running statistic is what plain wrappers train."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import imprint

from references.wrapped import Naive, distance, sgd

K, B = 3, 8


class ResBlock(nn.Module):
    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.skip = nn.Sequential()
        if stride != 1 or width != out:
            self.skip = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(h.add_(self.skip(x)))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(ResBlock(4, 4, 1), ResBlock(4, 6, 2))
        self.fc = nn.Linear(6, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


class OuterSkip(ResNet):
    """A path around all blocks carries the task's gradient back to the stem."""

    def forward(self, x: Tensor) -> Tensor:
        s = self.stem(x)
        return self.fc(self.blocks(s).mean((2, 3)) + F.pad(s.mean((2, 3)), (0, 2)))


class Loop(nn.Module):
    """An encoder of torch's own layers, called in a loop, batch or sequence first."""

    def __init__(self, batch_first: bool, norm_first: bool = True) -> None:
        super().__init__()
        self.readout = lambda h: h.mean(1 if batch_first else 0)
        self.embed = nn.Linear(3, 8)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, norm_first=norm_first, batch_first=batch_first)
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, K)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        h = self.embed(x)
        for layer in self.layers:
            h = layer(h, src_key_padding_mask=padding)
        h = self.norm(h)
        return self.head(self.readout(h))


class AttentionBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm(x)
        x = x + self.attention(n, n, n, need_weights=False)[0]
        return x + self.mlp(x)


class Embed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patchify = nn.Conv2d(2, 8, 2, 2)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 5, 8))

    def forward(self, x: Tensor) -> Tensor:
        h = self.patchify(x).flatten(2).transpose(1, 2)
        return torch.cat([self.token.expand(len(h), -1, -1), h], 1) + self.position


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = Embed()
        self.blocks = nn.Sequential(AttentionBlock(), AttentionBlock())
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(x))[:, 0]))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 6)
        self.rnn = kind(6, 6, num_layers=2, batch_first=True)
        self.head = nn.Linear(6, K)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(torch.tanh(self.embed(x)))
        return self.head(out[:, -1])


class Nested(nn.Module):
    """Containers within containers, called by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleDict(
            {
                "left": nn.Sequential(
                    nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh()), nn.Linear(6, 5), nn.Tanh()
                ),
                "right": nn.ModuleList([nn.Linear(4, 5), nn.Sequential(nn.Linear(5, 5), nn.ReLU(inplace=True))]),
            }
        )
        self.head = nn.Linear(10, K)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.towers["left"](x), x
        for layer in self.towers["right"]:
            right = layer(right)
        return self.head(torch.cat([left, right], 1))


def images() -> tuple[Tensor, ...]:
    return (torch.randn(B, 2, 4, 4, dtype=torch.float64),)


def tokens() -> tuple[Tensor, ...]:
    return (torch.randn(B, 5, 3, dtype=torch.float64),)


def sequence_first() -> tuple[Tensor, ...]:
    return (torch.randn(5, B, 3, dtype=torch.float64),)


def padded() -> tuple[Tensor, ...]:
    padding = torch.arange(5)[None] >= torch.randint(2, 6, (B, 1))
    return (*tokens(), padding)


def padded_sequence_first() -> tuple[Tensor, ...]:
    x, padding = padded()
    return x.transpose(0, 1).contiguous(), padding


def vectors() -> tuple[Tensor, ...]:
    return (torch.randn(B, 4, dtype=torch.float64),)


Units = Sequence[str | tuple[str, ...]]
STEM = ("stem.0", "stem.1", "stem.2")
CASES: dict[str, tuple[Any, Any, dict[str, Any], Units, str | None, dict[str, Any]]] = {
    # model, input, options of attach, units, the opened one, options of the reference
    "residual": (ResNet, images, {}, (STEM, "blocks.0", "blocks.1", "fc"), "fc", {}),
    "residual, head outside": (
        ResNet, images, {"layers": r"stem|blocks\.\d"}, ("stem", "blocks.0", "blocks.1"), None, {},
    ),
    "skip around all blocks": (OuterSkip, images, {"layers": r"blocks\.\d"}, ("blocks.0", "blocks.1"), None, {}),
    "encoder": (lambda: Loop(True), padded, {}, ("embed", "layers.0", "layers.1", "norm", "head"), "head", {}),
    "encoder, sequence first": (
        lambda: Loop(False), sequence_first, {"layers": r"embed|layers\.\d"}, ("embed", "layers.0", "layers.1"), None,
        {"batch_dim": 1},
    ),
    "encoder, sequence first, masked": (
        lambda: Loop(False), padded_sequence_first, {"layers": r"layers\.\d", "exclude": "embed"},
        ("layers.0", "layers.1"), None, {"batch_dim": 1, "frozen": "embed"},
    ),
    "vision transformer": (ViT, images, {"layers": r"embed|blocks\.\d"}, ("embed", "blocks.0", "blocks.1"), None, {}),
    "attention inside a unit": (ViT, images, {}, ("embed", "blocks.0", "blocks.1", "norm", "head"), "head", {}),
    "gru": (lambda: Recurrent(nn.GRU), tokens, {}, ("embed", "rnn", "head"), "head", {}),
    "lstm": (lambda: Recurrent(nn.LSTM), tokens, {"layers": ["embed", "rnn"]}, ("embed", "rnn"), None, {}),
    "nested containers": (
        Nested, vectors, {},
        (
            ("towers.left.0.0", "towers.left.0.1", "towers.left.0.2"), ("towers.left.1", "towers.left.2"),
            "towers.right.0", ("towers.right.1.0", "towers.right.1.1"), "head",
        ),
        "head", {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_local_ce_trains_what_wrappers_train(case: str) -> None:
    make, inputs, options, units, opened, reference = CASES[case]
    model = make().double()
    naive = Naive(model, units, K, opened=opened, **reference)
    manager = imprint.attach(model, "local_ce", optimizer=sgd, **options)
    for _ in range(3):
        x, y = inputs(), torch.randint(K, (B,))
        out, expected = manager.step(x, y), naive.step(x, y)
        assert torch.allclose(out, expected, rtol=0, atol=1e-12)
    assert list(manager.units) == [u if isinstance(u, str) else u[0] for u in units]
    assert distance(naive, model) < 1e-12


@pytest.mark.parametrize("case", CASES)
def test_sigprop_trains_what_wrappers_train(case: str) -> None:
    make, inputs, options, units, opened, reference = CASES[case]
    model = make().double()
    naive = Naive(model, units, K, rule="contrast", opened=opened, **reference)
    manager = imprint.attach(model, "sigprop", num_classes=K, optimizer=sgd, **options)
    manager.bind(inputs(), torch.arange(B) % K)
    for _ in range(3):
        x, y = inputs(), torch.randint(K, (B,))
        rows = context_of(manager, x)
        out, expected = manager.step(x, y), naive.step(x, y, rows)
        assert torch.allclose(out, expected, rtol=0, atol=1e-12)
    assert distance(naive, model) < 1e-12


@pytest.mark.parametrize("case", ["residual", "encoder", "gru"])
def test_a_unit_that_learns_otherwise_is_noticed(case: str) -> None:
    """The negative control of the two tests above: one unit less, and the weights differ by much more than rounding."""
    make, inputs, _, units, opened, reference = CASES[case]
    model = make().double()
    naive = Naive(model, units[1:], K, opened=opened, **reference)
    manager = imprint.attach(model, "local_ce", optimizer=sgd)
    for _ in range(3):
        x, y = inputs(), torch.randint(K, (B,))
        manager.step(x, y), naive.step(x, y)
    assert distance(naive, model) > 1e-4


def context_of(manager: imprint.Manager, x: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The K context inputs, read off the stream's weights and masks."""
    assert manager.context is not None
    weights = dict(manager.context.stream.named_parameters())
    made = []
    for i, v in enumerate(x):
        if v.dtype == torch.bool:
            made.append(manager.context.stream.get_buffer(f"row{i}").expand(K, *v.shape[1:]))
        elif v.shape[0] == B:
            made.append(weights[f"weight{i}"].detach().view(K, *v.shape[1:]))
        else:
            made.append(weights[f"weight{i}"].detach().view(K, v.shape[0], v.shape[2]).transpose(0, 1))
    return tuple(made)


class Encoder(nn.Module):
    """The same encoder as a container of torch's, which looks at its layers' class and weights before it calls them."""

    def __init__(self, loop: Loop, nested: bool) -> None:
        super().__init__()
        self.embed, self.head = copy.deepcopy(loop.embed), copy.deepcopy(loop.head)
        self.encoder = nn.TransformerEncoder(loop.layers[0], 2, copy.deepcopy(loop.norm), enable_nested_tensor=nested)
        self.encoder.layers.load_state_dict(loop.layers.state_dict())

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x), src_key_padding_mask=padding)[:, 0])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("norm_first", [True, False])
def test_torch_encoder_equals_the_loop_over_its_layers(norm_first: bool) -> None:
    loop = Loop(True, norm_first).double()
    model = Encoder(loop, nested=not norm_first).double()
    loop.readout = lambda h: h[:, 0]
    naive = Naive(loop, ("embed", "layers.0", "layers.1", "norm"), K)
    manager = imprint.attach(model, "local_ce", optimizer=sgd, layers=r"embed|encoder\.layers\.\d|encoder\.norm")
    for _ in range(3):
        x, y = padded(), torch.randint(K, (B,))
        assert torch.allclose(manager.step(x, y), naive.step(x, y), rtol=0, atol=1e-12)
    mine = model.encoder.state_dict()
    for k, v in naive.tensors.items():
        if k.startswith(("layers", "norm")):
            assert torch.allclose(mine[k], v, rtol=0, atol=1e-12)
    # in eval mode torch takes a fused path, with nested tensors where it may; outputs and scores stay what they are
    naive.model.eval()
    with torch.no_grad():
        expected = naive.model(*x)
    assert torch.allclose(manager.predict(x), expected, rtol=0, atol=1e-6)
    scores = manager.predict(x, by="local", layers=r"encoder\.layers\.1")
    with torch.no_grad():
        h = naive.model.layers[0](naive.model.embed(x[0]), src_key_padding_mask=x[1])
        expected = naive.units[2].head(naive.model.layers[1](h, src_key_padding_mask=x[1]).mean(1))
    assert torch.allclose(scores, expected, rtol=0, atol=1e-6)
