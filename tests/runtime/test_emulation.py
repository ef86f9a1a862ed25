"""A replay does what the run did, with what Python did baked in; what a CUDA graph could not hold is refused."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from imprint.errors import ArgumentError, CaptureError, StateError
from imprint.runtime.emulation import EmulatedGraph

T, B, N, H, C = 12, 3, 5, 4, 3


class Learner:
    """A recurrent unit with a local loss and Adam every tick; all that crosses ticks is allocated here."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        cell, head = nn.GRUCell(N, H), nn.Linear(H, C)
        self.params = [*cell.parameters(), *head.parameters()]
        self.moments = [[torch.zeros_like(p) for p in self.params] for _ in range(2)]
        self.steps = [torch.zeros(()) for _ in self.params]
        self.inputs, self.labels = torch.randn(T, B, N), torch.randint(C, (T, B))
        self.t, self.h, self.ring = torch.zeros(1, dtype=torch.long), torch.zeros(B, H), torch.zeros(T, B, H)
        self.lr, self.cell, self.head = torch.tensor(0.01), cell, head

    def state(self) -> list[Tensor]:
        return [
            *(p.detach() for p in self.params),
            *self.moments[0],
            *self.moments[1],
            *self.steps,
            self.t,
            self.h,
            self.ring,
        ]

    def tick(self) -> None:
        x, y = self.inputs.index_select(0, self.t)[0], self.labels.index_select(0, self.t)[0]
        h = self.cell(F.dropout(x, 0.3), self.h)
        loss = F.cross_entropy(self.head(h), y) + 0.1 * (F.one_hot(y, C) * self.head(h)).square().mean()
        grads = torch.autograd.grad(loss, self.params)
        torch._foreach_add_(self.steps, 1)
        with torch.no_grad():
            torch._fused_adam_(
                self.params, list(grads), *self.moments, [], self.steps, lr=self.lr, beta1=0.9, beta2=0.99,
                weight_decay=0.0, eps=1e-8, amsgrad=False, maximize=False,
            )  # fmt: skip
            self.ring.index_copy_(0, self.t, h.detach()[None])
            self.h.copy_(torch.where(h.isfinite(), h, 0.0))
            self.t.add_(1).remainder_(T)


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def copies(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().clone() for t in tensors]


def captured(fn: Callable[[], Any], **options: Any) -> EmulatedGraph:
    graph = EmulatedGraph(**options)
    graph.capture(fn)
    return graph


def refused(fn: Callable[[], Any], match: str) -> CaptureError:
    with pytest.raises(CaptureError, match=match) as caught:
        EmulatedGraph().capture(fn)
    assert caught.value.fix is not None
    return caught.value


# --- what is replayed ---


def test_many_ticks_of_a_learner_are_bitwise_those_of_eager():
    eager, mine = Learner(), Learner()
    graph = captured(mine.tick, restore=mine.state())
    torch.manual_seed(1)
    for _ in range(3 * T):
        eager.tick()
    torch.manual_seed(1)
    for _ in range(3 * T):
        graph.replay()
    assert same(eager.state(), mine.state())
    assert not same(copies(Learner().params), copies(mine.params))


def test_a_rate_in_a_tensor_may_change_and_a_plain_number_may_not():
    eager, mine, plain = Learner(), Learner(), Learner()
    plain.lr = 0.01
    graph, baked = captured(mine.tick), captured(plain.tick)
    eager.lr.fill_(0.05)
    mine.lr.fill_(0.05)
    plain.lr = 0.05
    for run in (eager.tick, graph.replay, baked.replay):
        torch.manual_seed(1)
        run()
    assert same(eager.state(), mine.state())
    assert not same(eager.state(), plain.state())


def test_after_capture_nothing_has_happened():
    learner, norm = Learner(), nn.BatchNorm1d(N)  # its averages are written without a word in the schema
    before, averages = copies(learner.state()), copies(list(norm.buffers()))
    own = torch.Generator().manual_seed(3)
    torch.manual_seed(7)
    state, mine = torch.get_rng_state(), own.get_state()

    def tick() -> None:
        learner.tick()
        norm(learner.inputs[0] + torch.rand(N, generator=own))

    graph = captured(tick)
    assert same(before, copies(learner.state()))
    assert same(averages, copies(list(norm.buffers())))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(mine, own.get_state())
    graph.replay()
    assert norm.num_batches_tracked == 1
    assert not torch.equal(averages[0], norm.running_mean)


def test_a_refused_capture_leaves_everything_as_it_was_and_can_be_tried_again():
    x, graph = torch.ones(2), EmulatedGraph()

    def tick(read: bool) -> None:
        x.add_(1)
        torch.rand(3)
        if read:
            x.sum().item()

    state = torch.get_rng_state()
    with pytest.raises(CaptureError):
        graph.capture(lambda: tick(True))
    assert x.tolist() == [1.0, 1.0]
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(StateError, match="nothing is captured"):
        graph.replay()
    graph.capture(lambda: tick(False))
    graph.replay()
    assert x.tolist() == [2.0, 2.0]
    with pytest.raises(StateError, match="already"):
        graph.capture(lambda: tick(False))


def test_random_calls_draw_anew():
    x = torch.zeros(100)
    graph = captured(lambda: x.copy_(torch.rand(100)))
    torch.manual_seed(0)
    seen = [graph.replay() or x.clone() for _ in range(2)]
    torch.manual_seed(0)
    assert same(seen, [torch.rand(100), torch.rand(100)])
    assert not torch.equal(*seen)


def test_gradients_left_in_grad_are_the_graphs_own_and_written_anew():
    weight, x = nn.Parameter(torch.ones(3)), torch.ones(3)
    graph = captured(lambda: (weight * x).sum().backward())
    assert weight.grad.isnan().all()
    for scale in (2.0, 5.0):
        x.fill_(scale)
        graph.replay()
        assert weight.grad.tolist() == [scale] * 3


def test_autocast_around_a_replay_changes_nothing():
    a, b, out = torch.randn(8, 8), torch.randn(8, 8), torch.zeros(8, 8)
    graph = captured(lambda: out.copy_(a @ b))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        graph.replay()
        assert not torch.equal(out, (a @ b).float())
    assert torch.equal(out, a @ b)


STEPS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "add": lambda a, b: a.add_(b),
    "mix": lambda a, b: a.copy_(0.5 * a + b.t() @ a.t()),
    "part": lambda a, b: a[1:].sub_(b[:-1]),
    "column": lambda a, b: a[:, 0].fill_(0.25),
    "turned": lambda a, b: a.t().mul_(b.tanh()),
    "turn": lambda a, b: a.copy_(b.clone().t_().unsqueeze_(0).squeeze_(0)),
    "out": lambda a, b: torch.sub(a, b, out=a),
    "grown": lambda a, b: a.add_(torch.add(a, b, out=torch.empty(0))),
    "split": lambda a, b: a.copy_(torch.cat([p.sin() for p in b.chunk(2)])),
    "unsafe": lambda a, b: torch.unsafe_split(a, 1)[0].add_(1),
    "scatter": lambda a, b: a.scatter_(1, b.argsort(1), b),
    "each": lambda a, b: torch._foreach_mul_([a, b], 0.5),
    "grad": lambda a, b: a.add_(torch.func.grad(lambda w: (w @ b).cos().sum())(a)),
    "batched": lambda a, b: a.copy_(torch.func.vmap(torch.dot, (0, None))(a, b[0])[:, None].expand(3, 3)),
    "noise": lambda a, b: F.dropout(a, 0.5, inplace=True),
    "sorted": lambda a, b: a.copy_(b.sort(0)[0]),
    "bits": lambda a, b: a.view(torch.int32).bitwise_and_(-256),
    "complex": lambda a, b: a.copy_(torch.fft.ifft(torch.fft.fft(b)).real),
}


@given(names=st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_any_steps_replay_bitwise(names: list[str]):
    def tick(state: list[Tensor]) -> None:
        for i, name in enumerate(names):
            STEPS[name](state[i % 2], state[1 - i % 2])

    torch.manual_seed(0)
    eager = [torch.randn(3, 3), torch.randn(3, 3)]
    mine = copies(eager)
    graph = captured(lambda: tick(mine))
    for _ in range(3):
        torch.manual_seed(2)
        tick(eager)
        torch.manual_seed(2)
        graph.replay()
    assert same([t.view(torch.int32) for t in eager], [t.view(torch.int32) for t in mine])


def test_every_kind_of_step_can_move_something():
    for name, step in STEPS.items():
        a, b = torch.randn(3, 3), torch.randn(3, 3)
        before = copies([a, b])
        step(a, b)
        assert not same(before, [a, b]), name


# --- what is baked in ---


def differs(make: Callable[[], tuple[Callable[[], Any], Callable[[], Tensor]]], ticks: int = 4) -> bool:
    """Whether replays come out otherwise than eager runs; `make` returns a tick and what it worked out."""
    eager, read = make()
    for _ in range(ticks):
        eager()
    tick, mine = make()
    graph = captured(tick)
    for _ in range(ticks):
        graph.replay()
    return not torch.equal(read(), mine())


@pytest.mark.parametrize("baked", [False, True])
def test_a_python_index_is_baked_in(baked: bool):
    def make():
        out, inputs, place, t = torch.zeros(()), torch.arange(8.0), torch.zeros(1, dtype=torch.long), [0]

        def tick() -> None:
            out.add_(inputs[t[0]] if baked else inputs.index_select(0, place)[0])
            place.add_(1)
            t[0] += 1

        return tick, lambda: out

    assert differs(make) is baked


@pytest.mark.parametrize("bound", [False, True])
def test_state_that_is_bound_anew_stands_still(bound: bool):
    def make():
        first = torch.zeros(2)
        now, out = [first], torch.zeros(2)

        def tick() -> None:
            new = now[0] + 1
            if bound:
                now[0] = new
            else:
                now[0].copy_(new)
            out.copy_(new)

        tick.first = first  # somebody holds it, so it does not die
        return tick, lambda: out

    assert differs(make) is bound


def test_state_that_is_bound_anew_and_freed_is_named():
    class State:
        h = torch.zeros(2, 7)

    def tick() -> None:
        State.h = State.h + 1

    graph = EmulatedGraph(restore={"cell.h": State.h})
    graph.capture(tick)
    with pytest.raises(CaptureError, match=r"is freed") as caught:
        graph.replay()
    assert "'cell.h' (float32 [2, 7])" in str(caught.value)


@pytest.mark.parametrize("baked", [False, True])
def test_a_branch_is_baked_in(baked: bool):
    def make():
        out, t, ticks = torch.zeros(()), torch.zeros(()), [0]

        def tick() -> None:
            due = ticks[0] % 2 == 0 if baked else t.remainder(2) == 0
            out.add_((1.0 if due else 0.0) if baked else torch.where(due, 1.0, 0.0))
            t.add_(1)
            ticks[0] += 1

        return tick, lambda: out

    assert differs(make) is baked


# --- what is caught ---


def test_what_an_earlier_replay_left_is_not_read():
    x, out = torch.ones(2), torch.zeros(2, 2)

    def tick() -> None:
        left = torch.empty(2, 2)
        left[0] = x  # and row 1 is whatever was there
        out.copy_(left)

    graph = captured(tick)
    graph.replay()
    assert out[0].tolist() == [1.0, 1.0]
    assert out[1].isnan().all()


def test_a_graph_that_reads_what_another_one_left_sees_poison():
    x, out = torch.ones(2), torch.zeros(2)
    first = EmulatedGraph()
    left = first.capture(lambda: x * 2)
    second = captured(lambda: out.copy_(left))
    first.replay()
    second.replay()
    assert out.tolist() == [2.0, 2.0]
    first.poison()
    second.replay()
    assert out.isnan().all()


def test_poisoned_indices_say_so():
    table, out = torch.arange(4.0), torch.zeros(1)
    graph = captured(lambda: out.copy_(table.index_select(0, torch.empty(1, dtype=torch.long).clamp_(max=0))))
    with pytest.raises(CaptureError, match="aten::index_select failed, which it did not at capture"):
        graph.replay()


def test_freed_memory_is_refused_before_anything_runs():
    x, out = torch.ones(2), torch.zeros(2)
    view = x[:1]
    graph = captured(lambda x=x: out.add_(1).mul_(x))
    del x
    gc.collect()
    graph.replay()  # a view holds the storage, and the address is what counts
    assert out.tolist() == [1.0, 1.0]
    del view
    with pytest.raises(CaptureError, match="argument 1 of aten::mul_"):
        graph.replay()
    assert out.tolist() == [1.0, 1.0]


def test_moved_memory_is_refused():
    x, out, weight = torch.ones(2), torch.zeros(2), nn.Parameter(torch.ones(2))
    grown, bound = captured(lambda: out.add_(x)), captured(lambda: out.add_(weight.detach()))
    x.untyped_storage().resize_(1 << 20)
    with pytest.raises(CaptureError, match="lies elsewhere now"):
        grown.replay()
    bound.replay()
    weight.data = torch.zeros(2)
    with pytest.raises(CaptureError, match="is freed"):
        bound.replay()


def test_memory_that_shrank_is_refused_and_one_that_is_resized_in_a_tick_too():
    x, out = torch.ones(1000), torch.zeros(1000)
    graph = captured(lambda: out.add_(x))
    x.untyped_storage().resize_(3992)
    with pytest.raises(CaptureError, match="lies elsewhere now"):
        graph.replay()
    y, addend = torch.ones(2), torch.full((2,), 3.0)
    with pytest.raises(CaptureError, match="got another number of bytes"):
        EmulatedGraph(restore={"y": y}).capture(lambda: y.add_(addend).resize_(5000).fill_(2.0))
    assert y[:2].tolist() == [1.0, 1.0]


def test_a_graph_keeps_nothing_alive_that_it_only_looked_at():
    x, out = torch.ones(2), torch.zeros(2)

    def tick(x: Tensor) -> None:
        x.view(1, 2)
        out.add_(1)

    graph = captured(lambda x=x: tick(x), restore=[x])
    del x
    graph.replay()
    assert out.tolist() == [1.0, 1.0]


def test_a_non_capturable_optimizer_is_refused_with_what_to_do():
    net = nn.Linear(2, 2)
    adam = torch.optim.Adam(net.parameters())

    def tick() -> None:
        net(torch.ones(1, 2)).sum().backward()
        adam.step()

    tick()
    before = copies(list(net.parameters()))
    assert "capturable=True" in refused(tick, "aten::_local_scalar_dense makes the host wait").fix
    assert same(before, copies(list(net.parameters())))


X = torch.arange(6.0).view(2, 3)
WAITS = {
    "aten::_local_scalar_dense": lambda: X.sum().item(),
    "aten::_local_scalar_dense ": lambda: bool(X.sum() > 0),
    "aten::_local_scalar_dense  ": lambda: F.one_hot(X.long()),
    "aten::nonzero": lambda: X.nonzero(),
    "aten::index ": lambda: X[X > 1],
    "aten::index_put_ ": lambda: X.clone().index_put_((X > 1,), X.sum()),
    "aten::masked_select": lambda: X.masked_select(X > 1),
    "aten::_unique2": lambda: X.unique(),
    "aten::equal": lambda: torch.equal(X, X),
    "aten::allclose": lambda: torch.allclose(X, X),
    "aten::bincount": lambda: X.long().view(-1).bincount(),
    "aten::repeat_interleave": lambda: X.repeat_interleave(X[0].long(), dim=1),
    "aten::_linalg_check_errors": lambda: torch.linalg.inv(X[:, :2]),
    "Tensor.tolist": lambda: X.tolist(),
    "Tensor.numpy": lambda: X.numpy(),
    "Tensor.cpu": lambda: X.cpu(),
    "Tensor.__repr__": lambda: str(X),
    "cond": lambda: torch.cond(X.sum() > 0, torch.sin, torch.cos, (X,)),
}
BRINGS = {
    "aten::lift_fresh": lambda: X + torch.tensor([1.0, 2.0, 3.0]),
    "aten::lift_fresh ": lambda: X[[0, 1]],
    "aten::lift_fresh  ": lambda: X + torch.from_numpy(ARRAY),
}
ARRAY = X.clone().numpy()


@pytest.mark.parametrize("name", WAITS)
def test_what_the_host_waits_for_is_refused_by_name(name: str):
    error = refused(WAITS[name], name.rstrip() + r"\b")
    assert error.what.startswith(name.split()[0])


@pytest.mark.parametrize("name", BRINGS)
def test_data_from_the_host_is_refused(name: str):
    refused(BRINGS[name], f"{name.strip()} brings data from the host")


def test_what_looks_alike_and_is_legal_passes():
    rows, out = torch.tensor([1, 0]), torch.zeros(2, 3)

    def tick() -> None:
        out.copy_(X[rows] * (X > 1) + torch.where(X > 1, X, 0.0) + torch.full((2, 3), 2.0) + torch.scalar_tensor(3.0))
        out.add_(X[0].repeat_interleave(rows.clamp(1, 1).repeat(3)[:3], output_size=3))
        out.add_(F.one_hot(rows, 3))

    graph = captured(tick)
    graph.replay()
    want = X[rows] * (X > 1) + torch.where(X > 1, X, 0.0) + 5.0 + X[0] + F.one_hot(rows, 3)
    assert torch.equal(out, want)


def test_what_is_allowed_is_recorded_and_its_number_baked_in():
    x, out = torch.ones(2), torch.zeros(2)

    def tick() -> None:
        out.copy_(x * x.sum().item() + torch.tensor([1.0, 2.0]))

    graph = captured(tick, allow=["aten::_local_scalar_dense", "aten::lift_fresh"])
    x.fill_(10.0)
    graph.replay()
    assert out.tolist() == [21.0, 22.0]


def test_a_shape_that_changes_is_refused():
    x, out = torch.ones(4), torch.zeros(())
    graph = captured(lambda: out.copy_(x.nonzero().sum()), allow="aten::nonzero")
    graph.replay()
    x[0] = 0.0
    with pytest.raises(CaptureError, match=r"aten::nonzero returned another shape") as caught:
        graph.replay()
    assert (caught.value.expected, caught.value.got) == ("int64 [4, 1]", "int64 [3, 1]")


def test_allow_takes_names_of_calls_only():
    with pytest.raises(ArgumentError, match="there is no such call"):
        EmulatedGraph(allow=["aten::item_of_news"])
    with pytest.raises(ArgumentError, match=r"\[0\] is no tensor"):
        EmulatedGraph(restore=[1.0])


def test_writes_that_are_no_aten_calls_are_noticed():
    x, out = torch.zeros(2), torch.zeros(2)
    array = x.numpy()

    def tick() -> None:
        array[0] += 1
        out.add_(1)

    graph = EmulatedGraph(restore={"x": x})
    for _ in range(2):  # a second try is refused as well
        with pytest.raises(CaptureError, match=r"'x' \(float32 \[2\]\) changed, but no recorded call touches it"):
            graph.capture(tick)
    assert (x.tolist(), out.tolist()) == ([0.0, 0.0], [0.0, 0.0])


def test_tensors_that_cannot_be_emulated_are_refused():
    sparse, turned = torch.eye(2).to_sparse(), torch.ones(2, dtype=torch.complex64).conj()
    for fn in (lambda: sparse * 2, lambda: turned * 2):
        refused(fn, "cannot be emulated")


def test_the_prototypes_way_of_holding_arguments_would_miss_a_rebound_parameter():
    """Negative control: a list of tensor objects follows ``.data =``; a list of addresses does not, nor does a GPU."""
    weight, out, seen = nn.Parameter(torch.ones(2)), torch.zeros(2), []

    class Naive(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append((func, args))
            return func(*args, **(kwargs or {}))

    def tick() -> None:
        with torch.no_grad():
            out.add_(weight)

    old = weight.detach()
    graph = captured(tick)
    with Naive():
        tick()
    weight.data = torch.full((2,), 5.0)
    out.zero_()
    graph.replay()
    assert out.tolist() == old.tolist() == [1.0, 1.0]
    func, args = seen[0]
    out.zero_()
    func(*(a.detach() for a in args))
    assert out.tolist() == [5.0, 5.0]
