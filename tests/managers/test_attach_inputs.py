"""What goes into a model and comes out: several inputs, tokens, masks, dictionaries; and the context for each kind."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import imprint
from imprint.errors import ArgumentError, CoverageError, DtypeError, NonFiniteError, ShapeError, UnknownNameError

from references.wrapped import Naive, contrast, distance, sgd

K, B = 3, 8


class TwoInputs(nn.Module):
    """An image-like and a vector input, an optional scale, and a dictionary as output."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Tanh())
        self.vector = nn.Linear(4, 6)
        self.joined = Pair()
        self.head = nn.Linear(5, K)

    def forward(self, image: Tensor, vector: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        h = self.joined(self.image(image), scale * self.vector(vector))
        return {"count": torch.tensor(len(image)), "logits": self.head(h), "h": h}


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(6, 5)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.tanh(self.a(a) + self.b(b))


UNITS = (("image.1", "image.2"), "vector", "joined", "head")


def two() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(B, 3, 4).double(), torch.randn(B, 4).double(), torch.randint(K, (B,))


@pytest.mark.parametrize("given", ["tuple", "dict"])
def test_several_inputs(given: str) -> None:
    model = TwoInputs().double()
    naive = Naive(model, UNITS, K, opened="head")
    manager = imprint.attach(model, "local_ce", optimizer=sgd)
    for _ in range(3):
        image, vector, y = two()
        x: Any = (image, vector, 0.5) if given == "tuple" else {"image": image, "vector": vector, "scale": 0.5}
        out = manager.step(x, y)
        naive_out = naive.model  # the reference reads its output's floating entry
        naive.learn((image, vector, 0.5), y)
        naive.update()
        assert naive_out is naive.model and out.keys() == {"count", "logits", "h"}
        assert torch.allclose(out["logits"], naive.out["logits"], rtol=0, atol=1e-12)
        assert not out["logits"].requires_grad and not out["h"].requires_grad
    assert distance(naive, model) < 1e-12


def test_several_inputs_with_a_context() -> None:
    model = TwoInputs().double()
    naive = Naive(model, UNITS, K, rule="contrast", opened="head")
    manager = imprint.attach(model, "sigprop", num_classes=K, optimizer=sgd)
    image, vector, y = two()
    manager.bind({"image": image, "vector": vector}, y)
    weights = dict(manager.context.stream.named_parameters())
    context = (weights["weight0"].detach().view(K, 3, 4), weights["weight1"].detach().view(K, 4))
    for _ in range(3):
        image, vector, y = two()
        manager.step({"image": image, "vector": vector}, y)
        naive.step((image, vector), y, context)
    assert distance(naive, model) < 1e-12


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.drop = nn.Dropout(0.0)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.head = nn.Linear(8, K)

    def forward(self, ids: Tensor, padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h = self.drop(self.embed(ids))
        for block in self.blocks:
            h = block(h, src_key_padding_mask=padding)
        return self.head(h.mean(1)), h


def ids() -> tuple[Tensor, Tensor]:
    return torch.randint(11, (B, 6)), torch.arange(6)[None] >= torch.randint(3, 7, (B, 1))


def test_token_inputs_get_one_fixed_sequence_a_class() -> None:
    model = Tokens().double()
    units = ("embed", "blocks.0", "blocks.1", "head")
    naive = Naive(model, units, K, rule="contrast", opened="head")
    manager = imprint.attach(model, "sigprop", num_classes=K, optimizer=sgd)
    manager.bind(ids(), torch.arange(B) % K)
    table = dict(manager.context.stream.named_buffers())["table0"]
    assert table.shape == (K, 6) and table.min() >= 0 and table.max() < 11 and len(table.unique(dim=0)) == K
    mask = manager.context.stream.row1.expand(K, 6)
    assert mask.dtype == torch.bool and not mask.all() and mask.any()
    for _ in range(3):
        x, y = ids(), torch.randint(K, (B,))
        out = manager.step(x, y)
        naive.step(x, y, (table, mask))
        assert torch.allclose(out[0], naive.out[0], rtol=0, atol=1e-12)
    assert distance(naive, model) < 1e-12


def test_context_at_starts_the_stream_inside_the_model() -> None:
    model = Tokens().double()
    manager = imprint.attach(
        model, "sigprop", num_classes=K, layers=r"blocks\.\d", exclude="embed", context_at="embed", optimizer=sgd
    )
    x, y = (ids()[0],), torch.randint(K, (B,))
    manager.bind(x, y)
    start = dict(manager.context.stream.named_parameters())["inside.weight0"].detach().view(K, 6, 8)
    naive = Naive(model, ("blocks.0", "blocks.1"), K, rule="contrast")
    naive.task = [p for p in naive.task if p.shape != (11, 8)]
    spread = model.embed(x[0]).detach()
    assert torch.allclose(start.mean(), spread.mean(), atol=0.3) and torch.allclose(start.std(), spread.std(), rtol=0.3)
    for _ in range(3):
        x, y = (ids()[0],), torch.randint(K, (B,))
        embed = naive.model.embed.forward
        naive.y = y
        naive.mode = "context"
        naive.model.embed.forward = lambda ids: start
        with torch.no_grad():
            naive.model(*x)
        naive.model.embed.forward = embed
        manager.step(x, y)
        naive.step(x, y)
    assert distance(naive, model) < 1e-12


def test_the_first_batch_of_a_context_must_be_finite() -> None:
    """Else its inputs would be drawn with a mean of NaN, and no later batch could mend them."""
    for bad in (float("nan"), float("inf")):
        manager = imprint.attach(TwoInputs(), "sigprop", num_classes=K)
        image, vector, y = two()
        spoilt = vector.float().index_fill(1, torch.tensor([2]), bad)
        with pytest.raises(NonFiniteError, match=r"first batch[\s\S]*\(8, 4\)[\s\S]*nothing is bound"):
            manager.step((image.float(), spoilt), y)
        assert manager.bound is None
        assert torch.isfinite(manager.step((image.float(), vector.float()), y)["logits"]).all()


def test_context_at_errors() -> None:
    with pytest.raises(UnknownNameError, match=r"'embd'[\s\S]*did you mean 'embed'"):
        imprint.attach(model := Tokens(), "sigprop", context_at="embd")
    assert type(model.blocks[0]) is nn.TransformerEncoderLayer  # a refused attach leaves the model as it was
    with pytest.raises(CoverageError, match="inside a unit"):
        imprint.attach(model, "sigprop", context_at="blocks.0.linear1")
    imprint.attach(model, "local_ce").detach()


def test_learned_context_needs_a_floating_input() -> None:
    manager = imprint.attach(Tokens(), "sigprop", num_classes=K, learned=True)
    with pytest.raises(DtypeError, match=r"signal[\s\S]*floating"):
        manager.step(ids(), torch.randint(K, (B,)))


class Result(NamedTuple):
    h: Tensor
    codes: Tensor


class Quantize(nn.Module):
    def __init__(self, order: str) -> None:
        super().__init__()
        self.linear, self.order = nn.Linear(4, 4), order

    def forward(self, x: Tensor) -> Any:
        h = torch.tanh(self.linear(x))
        codes = (h > 0).long()
        return {"named": Result(h, codes), "codes first": (codes, h), "codes": codes, "nested": {"a": [codes, (h,)]}}[
            self.order
        ]


class Quantized(nn.Module):
    def __init__(self, order: str) -> None:
        super().__init__()
        self.quantize, self.head = Quantize(order), nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:
        out = self.quantize(x)
        order = self.quantize.order
        if order == "named":
            assert type(out) is Result
            return self.head(out.h * out.codes)
        if order == "nested":
            return self.head(out["a"][1][0] * out["a"][0])
        return self.head(out[0] * out[1] if order == "codes first" else out.to(x.dtype))


@pytest.mark.parametrize("order", ["named", "codes first", "nested"])
def test_a_unit_may_return_structures(order: str) -> None:
    models = [Quantized(order).double(), Quantized("named").double()]
    models[1].load_state_dict(models[0].state_dict())
    x, y = torch.randn(B, 4).double(), torch.randint(K, (B,))
    for model in models:
        manager = imprint.attach(model, "local_ce", optimizer=sgd)
        for _ in range(2):
            manager.step(x, y)
    for a, b in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(a, b)


def test_a_unit_of_integers_cannot_learn_but_may_stay() -> None:
    x, y = torch.randn(B, 4), torch.randint(K, (B,))
    manager = imprint.attach(Quantized("codes"), "local_ce", layers=["quantize"])
    with pytest.raises(DtypeError, match=r"unit 'quantize'[\s\S]*no floating tensor"):
        manager.step(x, y)
    model = Quantized("codes")
    before = model.quantize.linear.weight.clone()
    manager = imprint.attach(model, {"quantize": imprint.Frozen(), "head": "local_ce"})
    manager.step(x, y)
    assert torch.equal(model.quantize.linear.weight, before)


class Flat(nn.Module):
    """Merges batch and positions, as window attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 5), nn.Linear(5, K)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.inner(x.flatten(0, 1))).view(len(x), -1, 5)
        return self.head(h.mean(1))


@pytest.mark.parametrize("rule", ["local_ce", "sigprop", "predsim"])
def test_a_unit_without_the_batch_in_its_output_is_refused(rule: str) -> None:
    manager = imprint.attach(Flat(), rule, num_classes=K)
    with pytest.raises(ShapeError, match=r"unit 'inner'[\s\S]*8[\s\S]*\(24, 5\)"):
        manager.step(torch.randn(B, 3, 4), torch.randint(K, (B,)))


class SequenceFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.head = nn.Linear(3, 6), nn.GRU(6, 6), nn.Linear(6, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(torch.tanh(self.embed(x)))[0][-1])


@pytest.mark.parametrize("length", [5, B, 1])
@pytest.mark.parametrize("rule", ["local_ce", "sigprop"])
def test_sequence_first_whatever_the_length(length: int, rule: str) -> None:
    """Also where the sequence is as long as the batch, so that sizes alone do not say which dimension is which."""
    x, y = torch.randn(length, B, 3).double(), torch.randint(K, (B,))
    model = SequenceFirst().double()
    naive = Naive(model, ("embed", "rnn"), K, rule="ce" if rule == "local_ce" else "contrast", batch_dim=1)
    manager = imprint.attach(model, rule, num_classes=K, layers="embed|rnn", optimizer=sgd)
    manager.bind(x, y)
    context = None
    if rule == "sigprop":
        context = (
            dict(manager.context.stream.named_parameters())["weight0"].detach().view(K, length, 3).transpose(0, 1),
        )
    for _ in range(2):
        manager.step(x, y), naive.step((x,), y, context)
    assert distance(naive, model) < 1e-12


def test_example_without_labels_finds_the_batch_in_the_output() -> None:
    x, y = torch.randn(5, B, 3).double(), torch.randint(K, (B,))
    models = [SequenceFirst().double(), SequenceFirst().double()]
    models[1].load_state_dict(models[0].state_dict())
    first = imprint.attach(models[0], "local_ce", num_classes=K, example=x, optimizer=sgd)
    second = imprint.attach(models[1], "local_ce", num_classes=K, optimizer=sgd)
    for _ in range(2):
        assert torch.equal(first.step(x, y), second.step(x, y))


@pytest.mark.parametrize("size", [B, 32])
def test_hidden_width_as_large_as_the_batch(size: int) -> None:
    model = nn.Sequential(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, K)).double()
    naive = Naive(model, (("0", "1"),), K)
    manager = imprint.attach(model, "local_ce", layers="0|1", optimizer=sgd)
    for _ in range(2):
        x, y = torch.randn(size, size).double(), torch.randint(K, (size,))
        manager.step(x, y), naive.step((x,), y)
    assert distance(naive, model) < 1e-12


def test_longer_sequences_after_bind() -> None:
    model = Tokens().double()
    naive = Naive(model, ("embed", "blocks.0", "blocks.1"), K)
    manager = imprint.attach(model, "local_ce", layers=r"embed|blocks\.\d", optimizer=sgd)
    for length in (6, 3, 9):
        x, y = (torch.randint(11, (B, length)),), torch.randint(K, (B,))
        manager.step(x, y), naive.step(x, y)
    assert distance(naive, model) < 1e-12


def test_predict_by_local_picks_the_nearest_context() -> None:
    model = TwoInputs().double()
    manager = imprint.attach(model, "sigprop", num_classes=K, layers=["joined"], exclude="image|vector")
    image, vector, y = two()
    manager.step((image, vector), y)
    stream = dict(manager.context.stream.named_parameters())
    model.eval()
    with torch.no_grad():
        hidden = [
            model.joined.forward(model.image(a), model.vector(b))
            for a, b in [(image, vector), (stream["weight0"].view(K, 3, 4), stream["weight1"].view(K, 4))]
        ]
    z = F.normalize(hidden[0]) @ F.normalize(hidden[1]).T / 0.1
    assert torch.allclose(manager.predict((image, vector), by="local"), z, rtol=0, atol=1e-12)
    assert torch.allclose(F.cross_entropy(z, y), contrast(*hidden, y))


class Vectors(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(4, 5), nn.Linear(5, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.a(x)))


@pytest.mark.parametrize("given", ["signal", "learned"])
def test_a_learned_context_is_a_unit_of_its_own(given: str) -> None:
    """It contrasts the raw input with its rows; the units see the rows of before its step."""
    model = Vectors().double()
    naive = Naive(model, ("a",), K, rule="contrast")
    options: dict[str, Any] = {"signal": nn.Linear(K, 4, bias=False)} if given == "signal" else {"learned": True}
    manager = imprint.attach(model, "sigprop", num_classes=K, layers="a", optimizer=sgd, **options)
    x, y = torch.randn(B, 4).double(), torch.randint(K, (B,))
    manager.bind(x, y)
    stream = dict(manager.context.stream.named_parameters())
    weight = stream["project.weight"].T if given == "signal" else stream["weight0"]
    rows = weight.detach().clone().requires_grad_()
    optimizer = sgd([rows])
    for _ in range(3):
        x, y = torch.randn(B, 4).double(), torch.randint(K, (B,))
        manager.step(x, y), naive.step((x,), y, (rows.detach().clone(),))
        rows.grad = torch.autograd.grad(contrast(x, rows, y), rows)[0]
        optimizer.step()
    assert distance(naive, model) < 1e-12 and torch.allclose(weight, rows, rtol=0, atol=1e-12)
    assert "signal" in manager.optimizers and "learned context" in repr(manager)


@pytest.mark.parametrize(
    ("signal", "match"),
    [
        (nn.Linear(K, 5), r"signal=[\s\S]*4 numbers a row[\s\S]*nn\.Linear\(3, 4\)"),
        (nn.Linear(K + 1, 4), r"signal=[\s\S]*does not run[\s\S]*nn\.Linear\(3, 4\)"),
    ],
)
def test_signals_that_do_not_fit(signal: nn.Module, match: str) -> None:
    manager = imprint.attach(Vectors(), "sigprop", num_classes=K, signal=signal)
    with pytest.raises(ShapeError, match=match):
        manager.step(torch.randn(B, 4), torch.randint(K, (B,)))
    manager = imprint.attach(TwoInputs(), "sigprop", num_classes=K, signal=nn.Linear(K, 4))
    with pytest.raises(ArgumentError, match=r"signal=[\s\S]*2 floating inputs"):
        manager.step((torch.randn(B, 3, 4), torch.randn(B, 4)), torch.randint(K, (B,)))


class Maps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(x).mean((2, 3)))


@pytest.mark.parametrize("rule", ["local_ce", "sigprop"])
def test_inputs_of_another_size_after_bind(rule: str) -> None:
    """A head on a map is made for its size: another size is refused by the unit's name, and changes nothing."""
    model = Maps()
    manager = imprint.attach(model, rule, num_classes=K)
    y = torch.randint(K, (B,))
    manager.step(torch.randn(B, 1, 6, 6), y)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for again in (False, True):
        if again:
            manager.bind(torch.randn(B, 1, 8, 8), y)
        both = r"[\s\S]*\('batch', 1, 6, 6\)[\s\S]*\(8, 1, 8, 8\)" if rule == "local_ce" else r"[\s\S]*4, 6, 6"
        with pytest.raises(ShapeError, match=r"unit 'a\.0'" + both):
            manager.step(torch.randn(B, 1, 8, 8), y)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert manager.predict(torch.randn(B, 1, 8, 8)).shape == (B, K)  # the model itself takes any
    manager.step(torch.randn(B, 1, 6, 6), y)


def test_binding_again_keeps_heads_optimizers_and_the_fast_path() -> None:
    model = Vectors().double()
    manager = imprint.attach(model, "sigprop", num_classes=K, optimizer=sgd)
    naive = Naive(model, ("a", "head"), K, rule="contrast", opened="head")
    for i in range(4):
        x, y = torch.randn(B, 4).double(), torch.randint(K, (B,))
        if i == 0 or i == 2:
            manager.bind(x, y)
        rows = (dict(manager.context.stream.named_parameters())["weight0"].detach(),)
        manager.step(x, y), naive.step((x,), y, rows)
    assert distance(naive, model) < 1e-12
    assert all(a.prop.params is a.unit.own for a in manager.units.values())


@pytest.mark.parametrize("length", [5, B])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_an_attention_mask_of_positions_has_no_batch(length: int, kind: str) -> None:
    """Data and context get the same one, also where the sequence is as long as the batch."""

    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, K)
            self.layer = nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.head(self.layer(self.embed(x), src_mask=mask)[:, -1])

    model = Causal().double()
    naive = Naive(model, ("embed", "layer"), K, rule="contrast")
    manager = imprint.attach(model, "sigprop", num_classes=K, layers="embed|layer", optimizer=sgd)
    mask = torch.ones(length, length, dtype=torch.bool).triu(1)
    if kind == "float":
        mask = torch.zeros(length, length).double().masked_fill(mask, -torch.inf)
    for i in range(2):
        x, y = torch.randn(B, length, 3).double(), torch.randint(K, (B,))
        manager.bind((x, mask), y) if i == 0 else None
        rows = dict(manager.context.stream.named_parameters())["weight0"].detach().view(K, length, 3)
        manager.step((x, mask), y), naive.step((x, mask), y, (rows, mask))
    assert distance(naive, model) < 1e-12


def test_the_order_of_a_dict_does_not_matter() -> None:
    models = [TwoInputs().double(), TwoInputs().double()]
    models[1].load_state_dict(models[0].state_dict())
    batches = [two() for _ in range(3)]
    for model, turned in zip(models, (False, True), strict=True):
        torch.manual_seed(4)
        manager = imprint.attach(model, "sigprop", num_classes=K)
        for i, (image, vector, y) in enumerate(batches):
            x = {"image": image, "vector": vector}
            manager.step(dict(reversed(x.items())) if turned and i else x, y)
    for a, b in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("rule", ["local_ce", "sigprop"])
@pytest.mark.parametrize("form", ["left out", "none"])
def test_an_optional_mask_that_comes_and_goes(rule: str, form: str) -> None:
    """Fine where there is no context; with one, its inputs were made for what the model was bound with."""
    model = Tokens()
    manager = imprint.attach(model, rule, num_classes=K)
    (x, mask), y = ids(), torch.randint(K, (B,))
    manager.step((x, mask), y)
    other = (x,) if form == "left out" else (x, None)
    if rule == "local_ce":
        manager.step(other, y), manager.step((x, mask), y)
        return
    with pytest.raises(ShapeError, match=r"other parts[\s\S]*2 arguments, 2 of them tensors"):
        manager.step(other, y)
    manager.step((x, mask), y)
