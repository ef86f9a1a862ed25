"""Each audit finds its defect, names it, and says nothing of a tick without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from imprint.errors import ArgumentError, CaptureError, StateError
from imprint.runtime import audits
from imprint.runtime.emulation import EmulatedGraph

W, H, X = torch.randn(3, 3), torch.zeros(2, 3), torch.ones(2, 3)


def captured(fn: Callable[[], Any], **options: Any) -> EmulatedGraph:
    graph = EmulatedGraph(**options)
    graph.capture(fn)
    return graph


def good() -> None:
    H.copy_((X @ W.t()).tanh() + 0.5 * H)


def test_a_good_tick_has_no_findings():
    graph, lowered = captured(good), make_fx(good)()
    for tick in (graph, lowered):
        assert audits.syncs(tick) == audits.host_data(tick) == audits.over_budget(tick, 5) == []
        assert audits.kernels(tick) == {
            "aten::mm": 1,
            "aten::tanh": 1,
            "aten::mul": 1,
            "aten::add": 1,
            "aten::copy_": 1,
        }
    assert audits.allocated(graph, {"h": H}) == []
    assert audits.addresses(graph.replay, [H, W], 5) == []


def test_syncs_of_both_kinds_of_ticks():
    def tick(x: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
        return x[mask].sum() + x[rows].sum() + x.masked_select(mask).sum()

    args = (X, X > 0, torch.tensor([0, 1]))
    graph = captured(lambda: tick(*args), allow=["aten::index", "aten::masked_select"])
    for audited in (graph, make_fx(tick)(*args)):
        found = audits.syncs(audited)
        assert [line.split(":")[2] for line in found] == ["index", "masked_select"]
        assert "torch.where" in found[0]
    unknown = make_fx(tick)(*args)
    for node in unknown.graph.nodes:
        node.meta.clear()
    with pytest.raises(ArgumentError, match="its type is not known"):
        audits.syncs(unknown)


def test_copies_between_devices_wait():
    def tick(x: Tensor) -> Tensor:
        return x.to("meta") + 1

    lowered = make_fx(tick)(X)
    assert [line.split(",")[0] for line in audits.syncs(lowered)] == ["call 0"]
    assert audits.syncs(make_fx(lambda x: x.to(torch.float64))(X)) == []


def test_host_data_of_both_kinds_of_ticks():
    def tick(x: Tensor) -> Tensor:
        return x + torch.tensor([1.0, 2.0, 3.0])

    graph = captured(lambda: tick(X), allow=["aten::lift_fresh"])
    for audited in (graph, make_fx(tick)(X)):
        (finding,) = audits.host_data(audited)
        assert "aten::lift_fresh" in finding
        assert "before capture" in finding


def test_kernels_are_counted_without_views():
    def tick(x: Tensor) -> None:
        x.t().reshape(2, 3).unsafe_split(1)[0].t_().detach().add_(1)
        torch.add(x, x, out=torch.empty(2, 3))

    assert audits.kernels(captured(lambda: tick(X.clone()))) == {"aten::clone": 2, "aten::add_": 1, "aten::add": 1}
    assert audits.over_budget(captured(good), 4)[0].startswith("5 kernels, 4 are budgeted: ")


# --- what crosses replays ---


def crossing(fn: Callable[[], Any], *fixed: Tensor) -> list[str]:
    return audits.allocated(captured(fn), fixed)


def test_what_is_written_and_read_by_the_next_replay_has_to_be_fixed():
    assert crossing(good, H) == []
    (finding,) = crossing(good)
    assert "float32 [2, 3]" in finding
    assert "6 of 6 elements cross replays" in finding


def test_what_is_written_first_or_never_does_not_cross():
    out, scratch = torch.zeros(2, 3), torch.zeros(2, 3)
    assert crossing(lambda: out.copy_(scratch.copy_(X) + 1)) == []
    assert crossing(lambda: torch.add(X, W[:2], out=out)) == []
    assert len(crossing(lambda: torch.add(X, out, out=out))) == 1


def test_crossing_is_told_element_by_element():
    arena = torch.zeros(10)
    halves = arena[:5], arena[5:]

    def tick() -> None:
        halves[0].add_(1)
        halves[1].copy_(halves[0])

    assert crossing(tick, halves[0]) == []
    assert "2 of 10 elements" in crossing(tick, arena[:3])[0]
    assert "5 of 10 elements" in crossing(tick, halves[1])[0]

    def column() -> None:
        square = arena[:9].view(3, 3)
        square[:, 1:].fill_(1.0)
        arena[9].copy_(square.sum())
        square[:, 0].fill_(2.0)

    assert "3 of 10 elements" in crossing(column)[0]


def test_rings_cross_where_they_are_read():
    ring, t, out = torch.zeros(4, 3), torch.zeros(1, dtype=torch.long), torch.zeros(1, 3)

    def write() -> None:
        ring.index_copy_(0, t, X[:1])
        t.add_(1)

    def read() -> None:
        write()
        out.copy_(ring.index_select(0, (t - 2).remainder(4)))

    assert crossing(write, t) == []  # the host reads the ring, no replay does
    assert "12 of 12 elements" in crossing(read, t)[0]
    assert crossing(read, t, ring) == []
    assert len(crossing(lambda: ring.index_put_((t,), X[:1], accumulate=True))) == 1
    assert crossing(lambda: ring.index_put_((t,), X[:1])) == []


def test_running_averages_cross():
    norm = nn.BatchNorm1d(3)
    buffers = list(norm.buffers())
    assert len(crossing(lambda: norm(X))) == 3
    assert crossing(lambda: norm(X), *buffers) == []
    assert crossing(lambda: F.batch_norm(X, norm.running_mean, norm.running_var)) == []


def test_memory_of_the_graph_that_nothing_wrote_is_found():
    def tick() -> None:
        left = torch.empty(2, 3)
        left[0] = X[0]
        H.copy_(left)

    assert crossing(tick, H) == ["result of aten::empty (float32 [2, 3]): 3 elements are read before they are written"]
    assert crossing(lambda: H.copy_(torch.empty(2, 3).copy_(X))) == []


def test_elements_of_several_sizes_in_one_memory():
    x = torch.zeros(4)
    assert "4 of 4" in crossing(lambda: x.view(torch.int32).bitwise_or_(1))[0]
    assert "8 of 16" in crossing(lambda: (x[2:].fill_(1.0), x[:2].view(torch.uint8).add_(1)))[0]
    assert "8 of 16" in crossing(lambda: (x[:2].view(torch.uint8).add_(1), x[2:].fill_(1.0)))[0]


def test_memory_that_is_freed_is_named():
    x = torch.ones(3)
    graph = captured(lambda x=x: H.add_(x))
    del x
    with pytest.raises(CaptureError, match="is freed"):
        audits.allocated(graph, [H])
    with pytest.raises(StateError, match="nothing is captured"):
        audits.allocated(EmulatedGraph(), [H])


# --- layouts and addresses ---


def test_strides_that_differ():
    weight = torch.zeros(3, 4)
    turned, thin = torch.zeros(4, 3).t(), torch.zeros(5, 1)
    assert audits.strides([(weight, torch.zeros(3, 4)), (thin, torch.zeros(1, 5).t())]) == []
    assert audits.strides({"head.weight": (weight, turned)}) == [
        "head.weight: strides (4, 1) and (1, 3) of sizes [3, 4] and [3, 4]"
    ]
    assert len(audits.strides([(weight, torch.zeros(4, 3)), (weight, weight), (weight, weight[:2])])) == 2


def test_strides_find_what_makes_a_fused_optimizer_wrong():
    start, gradient = torch.zeros(2, 3), torch.arange(1.0, 7.0).view(3, 2).t()
    assert len(audits.strides([(start, gradient)])) == 1
    results = []
    for grad in (gradient, gradient.contiguous()):
        weight, moments = start.clone(), [torch.zeros(2, 3), torch.zeros(2, 3)]
        torch._fused_adam_(
            [weight], [grad], [moments[0]], [moments[1]], [], [torch.ones(())], lr=0.1, beta1=0.5, beta2=0.5,
            weight_decay=0.0, eps=1.0, amsgrad=False, maximize=False,
        )  # fmt: skip
        results.append(moments[0])
    assert not torch.equal(*results)  # should torch mend this, the audit is no longer needed


def test_addresses_see_what_moves_and_when():
    class State:
        h, w = torch.zeros(2), nn.Parameter(torch.zeros(2))
        runs = 0

    def tick() -> None:
        State.runs += 1
        State.h.add_(1)
        if State.runs == 2:
            State.w.data = torch.zeros(2)
        if State.runs == 3:
            State.h = State.h + 1

    found = audits.addresses(tick, lambda: {"h": State.h, "w": State.w}, 4)
    assert found == ["h (float32 [2]) moved in run 3", "w (float32 [2]) moved in run 2"]
    assert State.runs == 4
    assert audits.addresses(tick, lambda: [State.h, State.w], 4) == []
    gone = iter([{"a": X, "b": X}, {"a": X}])
    assert audits.addresses(lambda: None, lambda: next(gone), 1) == ["b is not there any more"]
    with pytest.raises(ArgumentError, match="at least once"):
        audits.addresses(tick, [X], 0)
