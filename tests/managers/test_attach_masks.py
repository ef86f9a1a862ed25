"""What the context stream sees where the data have masks: what they usually hide, whatever True means in them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import imprint
from imprint.errors import NonFiniteError, ShapeError
from imprint.signals.context import ClassContext

K, B = 3, 8


def ids() -> tuple[Tensor, Tensor]:
    """Tokens, and which of them are padding."""
    return torch.randint(11, (B, 6)), torch.arange(6)[None] >= torch.randint(3, 7, (B, 1))


def most_like_the_others(*masks: Tensor) -> int:
    """By comparing each row with each other one."""
    rows = [torch.cat([m[i].flatten() for m in masks]) for i in range(len(masks[0]))]
    unlike = [sum(int((a != b).sum()) for b in rows) for a in rows]
    return unlike.index(min(unlike))


@pytest.mark.parametrize("shape", [(6,), (2, 3), (1, 4, 4)])
def test_a_mask_of_the_context_is_the_row_most_like_the_others(shape: tuple[int, ...]) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        x, a, b = torch.randn(B, 5), torch.rand(B, *shape) < 0.4, torch.rand(B, 3) < 0.7
        stream = ClassContext()
        stream.build(stream.describe((x, a, b), [0, 0, 0], K, K), torch.device("cpu"))
        made = stream((x, a, b), torch.eye(K))
        row = most_like_the_others(a, b)
        assert torch.equal(made[1], a[row].expand(K, *shape)) and torch.equal(made[2], b[row].expand(K, 3))
        assert made[0].shape == (K, 5) and not torch.equal(made[1], torch.ones(K, *shape, dtype=torch.bool))
        added = torch.zeros(B, *shape).masked_fill(a, -torch.inf)
        again = ClassContext()
        again.build(again.describe((x, added, b.long()), [0, 0, 0], K, K), torch.device("cpu"))
        floating, integer = again((x, added, b.long()), torch.eye(K))[1:]
        assert torch.equal(floating, added[row].expand(K, *shape)) and integer.dtype == torch.int64
        assert torch.equal(integer, b[row].long().expand(K, 3))


def test_zeros_and_ones_that_are_the_only_input_tell_the_classes_apart() -> None:
    bits = torch.randint(2, (B, 40))
    stream = ClassContext()
    stream.build(stream.describe((bits,), [0], K, K), torch.device("cpu"))
    assert len(stream((bits,), torch.eye(K))[0].unique(dim=0)) == K


class Explicit(nn.Module):
    """Attention written out: a row that hides everything is NaN."""

    def __init__(self, true_is_hidden: bool) -> None:
        super().__init__()
        self.embed, self.attention = nn.Embedding(11, 8), nn.Linear(8, 24)
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, K)
        self.true_is_hidden = true_is_hidden

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.attention(self.embed(ids)).chunk(3, -1)
        hidden = mask if self.true_is_hidden else ~mask
        weights = (q @ k.mT).masked_fill(hidden[:, None], -torch.inf).softmax(-1)
        return self.head(self.body(weights @ v).tanh().mean(1))


class Encoder(nn.Module):
    """torch's own: True, or -inf, is hidden."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True)
        self.embed, self.encoder = nn.Embedding(11, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, K)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(ids), src_key_padding_mask=mask).mean(1))


MASKED: dict[str, tuple[Any, Any]] = {
    "True hides": (lambda: Explicit(True), lambda hidden: hidden),
    "True shows": (lambda: Explicit(False), lambda hidden: ~hidden),
    "torch": (Encoder, lambda hidden: hidden),
    "torch, added": (Encoder, lambda hidden: torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)),
}


@pytest.mark.parametrize("kind", MASKED)
@pytest.mark.parametrize("padded", ["right", "left"])
def test_masks_of_either_meaning_leave_the_context_something_to_see(kind: str, padded: str) -> None:
    make, mask_of = MASKED[kind]
    manager = imprint.attach(make(), "sigprop", num_classes=K)

    def batch() -> tuple[tuple[Tensor, Tensor], Tensor]:
        x, hidden = ids()
        return (x, mask_of(hidden if padded == "right" else hidden.flip(1))), torch.randint(K, (B,))

    manager.bind(*batch())
    seen: list[Any] = []
    manager.model.head.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    for _ in range(3):
        manager.step(*batch())
    assert all(torch.isfinite(v).all() for v in seen) and {len(v) for v in seen} == {B, K}
    assert manager.predict(batch()[0], by="local").isfinite().all()
    row = manager.context.stream.row1
    row.copy_(mask_of(torch.ones(6, dtype=torch.bool)))  # hide everything, as a mask that is all True may do
    if "torch" in kind:  # its attention gives zero, or NaN, as its version has it
        return
    with pytest.raises(NonFiniteError, match="unit 'body'"):
        manager.step(*batch())


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(4, 8), nn.Linear(8, K)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.embed(x)
        return self.head(self.attention(h, h, h, attn_mask=mask)[0].mean(1))


def test_a_mask_with_a_row_a_head_has_no_batch_dimension_for_the_context() -> None:
    """Of ``[batch * heads, positions, positions]`` nothing says which rows belong to a sample."""
    x, y, wide = torch.randn(B, 5, 4), torch.randint(K, (B,)), torch.zeros(2 * B, 5, 5, dtype=torch.bool)
    imprint.attach(Attends(), "local_ce", num_classes=K).step((x, wide), y)
    imprint.attach(Attends(), "sigprop", num_classes=K).step((x, wide[0]), y)
    manager = imprint.attach(Attends(), "sigprop", num_classes=K)
    with pytest.raises(ShapeError, match=r"unit 'attention': it does not run on the context[\s\S]*\(16, 5, 5\)"):
        manager.step((x, wide), y)
