"""Every numbered section of the guide runs as it is written, has the shapes it speaks of, learns, and stays alive."""

from __future__ import annotations

import pytest
import torch

import imprint
from imprint.errors import ShapeError

from references.guide import INFERRED, UNREACHED, check_it_learns, easy_batch, play
from references.guide_snippets import GUIDE


def shapes(graph: imprint.Graph) -> dict[str, tuple[int, ...]]:
    return {name: tuple(graph.run.recorded(f"{name}.out").shape) for name in graph.order}


def test_1_1_graph_and_clock() -> None:
    names = play(GUIDE["1.1"])
    assert names["g"].clock is names["clock"] and names["clock"].tick == 0


def test_1_2_modules_protos_and_ports() -> None:
    names = play(GUIDE["1.1"], GUIDE["1.2"], GUIDE["1.2 ports"])
    assert repr(names["enc_in"]) == "PortRef(enc.in)" and names["enc_out"] == names["enc"]["out"]
    names = play(GUIDE["1.1"], GUIDE["1.2"], GUIDE["1.2 ports"], GUIDE["1.2 define"], GUIDE["1.3"])
    g, enc = names["g"], names["enc"]
    g.connect(names["src"]["out"], enc["in"])
    with pytest.raises(ShapeError, match=r"layers 0\.\.1, −1 is the deepest"):  # two layers, and it names a third
        g.bind({"x": torch.zeros(2, 3, 4)})


def test_1_3_sources() -> None:
    src = play(GUIDE["1.3"])["src"]
    g = imprint.Graph()
    x = torch.randn(2, 3, 4)
    assert torch.equal(g.add(src).rollout({"x": x})["x"], x) and g.clock.tick == 3


def test_1_4_rates() -> None:
    names = play(GUIDE["1.4"], GUIDE["1.4 modules"])
    assert [names["rate"].should_emit_at(t) for t in range(4)] == [False, True, False, True]
    follower = imprint.Rate.follow("other_module_name")
    assert follower.follows == "other_module_name"
    g, src, hi, lo = imprint.Graph(), imprint.Source("x"), names["enc_hi"], names["enc_lo"]
    g.connect(src["out"], hi["in"])
    g.connect(src["out"], lo["in"])
    calls = {"enc_hi": 0, "enc_lo": 0}
    for module in (hi, lo):
        step = module.step_once

        def counted(drive, state, name=module.name, step=step):
            calls[name] += 1
            return step(drive, state)

        module.step_once = counted
    g.bind({"x": torch.randn(2, 6, 4)})
    state = {n: g[n].proto.init_state(2, torch.device("cpu"), torch.float32) for n in calls}
    out = g.rollout({"x": torch.randn(2, 6, 4)})
    assert out["enc_hi"].shape == (2, 6, 192) and out["enc_lo"].shape == (2, 3, 192)
    drive = lo.state.input_drive["in"]
    by_hand = state["enc_lo"]
    for t in range(6):
        for _ in range(4):
            by_hand, outs = g["enc_lo"].proto.step(drive[:, t], by_hand)
        if t % 2:
            torch.testing.assert_close(outs[-1], out["enc_lo"][:, t // 2])


def test_1_5_edges() -> None:
    names = play(*(GUIDE[k] for k in ("1.1", "1.3", "1.4 modules", "1.5", "1.5 constrain")))
    g, edge = names["g"], names["edge"]
    g.rollout({"x": torch.randn(2, 4, 3)})
    weight = edge.proj.weight
    i, j = torch.meshgrid(torch.arange(192), torch.arange(192), indexing="ij")
    assert edge.name == "hi→lo" and "edges.hi→lo.proj.weight" in dict(g.named_parameters())
    assert not weight[(i - j).abs() > 32].any() and weight[(i - j).abs() <= 32].all() and weight.abs().max() <= 0.3
    assert g.connect(names["enc_hi"]["out"], names["enc_lo"]["in"]) is edge


PATTERNS = """
m = enc_hi
m.objectives.mse(on="out", target=Targets.batch_key("y"), weight=20.0)
m.objectives.contrastive(on="out", target=Targets.shifted_input(src, shift=+1), weight=0.02)
m = enc_lo
m.objectives.mse(on="out", target=Targets.port_drive(enc_lo, port="in"), weight=200.0)
m.objectives.activity_l1(on="out")
top = imprint.Module("top", imprint.protos.MLP([192, 4]))
g.connect(enc_lo["out"], top["in"])
top.objectives.ce(on="out", target=Targets.batch_key("labels"))
g.rollout(batch)
"""


def wanted(batch: dict) -> torch.Tensor:
    """Values that a module of 192 units can be asked for, a tick."""
    return batch["x"].repeat(1, 1, 64) / 4


def one_to_seven() -> dict:
    """Sections 1.1 to 1.7 as one program; ``m`` is the module that its patterns speak of."""
    code = [GUIDE[k] for k in ("1.1", "1.2", "1.3", "1.4 modules", "1.5", "1.5 constrain", "1.6", "1.6 targets")]
    batch = easy_batch(8, 6, 3)
    return play(*code, PATTERNS, GUIDE["1.6 loss"], batch=batch | {"labels": batch["y"], "y": wanted(batch)})


def test_1_6_objectives_and_targets() -> None:
    names = one_to_seven()
    g, (hi, lo), y = names["g"], (names[n].state.output["out"] for n in ("enc_hi", "enc_lo")), names["batch"]["y"]
    found = {k: v.item() for k, v in g.losses().items()}
    assert sorted(found) == ["enc_hi.contrastive", "enc_hi.mse", "enc_lo.activity_l1", "enc_lo.mse", "top.ce"]
    drive = names["enc_lo"].state.input_drive["in"][:, 1::2]
    logits, labels = g["top"].state.output["out"].flatten(0, 1), names["batch"]["labels"].repeat_interleave(6)
    assert found["enc_hi.mse"] == pytest.approx(20 * (hi - y).square().mean().item(), rel=1e-5)
    assert found["enc_lo.mse"] == pytest.approx(200 * (lo - drive).square().mean().item(), rel=1e-5)
    assert found["top.ce"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert found["enc_lo.activity_l1"] == pytest.approx(1e-4 * lo.abs().mean().item(), rel=1e-5)
    assert names["loss"].item() == pytest.approx(sum(found.values()), rel=1e-5)
    check_it_learns(g, names["batch"])


def test_1_7_states() -> None:
    names = one_to_seven()
    drive, output, recurrent = (line for line in GUIDE["1.7"].splitlines() if line)
    value = lambda line, port: eval(line, {"m": names["m"], "port_name": port})
    assert value(drive, "in").shape == (8, 6, 192) and value(output, "out").shape == (8, 3, 192)
    assert value(recurrent, None).shape == (2, 8, 192)
    assert torch.equal(value(output, "out")[:, -1], value(recurrent, None)[-1])


def test_1_8_tracing_and_compilation() -> None:
    names = one_to_seven()
    second = easy_batch(5, 8, 3)
    second |= {"labels": second["y"], "y": torch.zeros(5, 8, 192)}
    more = play(GUIDE["1.8"], g=names["g"], batch=names["batch"], batch2=second)
    grads = {k: p.grad.clone() for k, p in names["g"].named_parameters() if p.grad is not None}
    names["g"].zero_grad()
    out = names["g"].rollout(second)
    assert torch.equal(more["out"]["enc_lo"], out["enc_lo"]) and more["out"]["enc_lo"].shape == (5, 4, 192)
    names["g"].loss().backward()
    own = {k: p.grad for k, p in names["g"].named_parameters() if p.grad is not None}
    assert own.keys() == grads.keys() and all(torch.equal(own[k], grads[k]) for k in own) and grads


def test_2_a_chain() -> None:
    names = play(GUIDE["2"], expect=(INFERRED, UNREACHED))
    g, out = names["g"], names["out"]
    classes = int(names["batch"]["y"].max()) + 1
    assert shapes(g) == {"x": (32, 200, 128), "enc": (32, 200, 256), "mlp": (32, 200, 512), "head": (32, 200, classes)}
    ce = torch.nn.functional.cross_entropy(out["head"].flatten(0, 1), names["batch"]["y"].repeat_interleave(200))
    assert names["loss"].item() == pytest.approx(ce.item() + 1e-4 * out["enc"].square().mean().item(), rel=1e-4)
    weight = g.edges["x_out__enc_in"].proj.weight
    assert weight.abs().max() <= 0.25 and not weight[:, 1::2].any() and weight[:, ::2].all()
    assert next(g["head"].proto.parameters()).grad.abs().sum() > 0
    check_it_learns(g, easy_batch(8, 6, 128))
    assert not weight[:, 1::2].any()


def test_3_rates_aggregator_readout() -> None:
    loader = [easy_batch(8, 8, 80, labels=2), easy_batch(8, 8, 80, labels=2)]
    names = play(GUIDE["3"], train_loader=loader, expect=(INFERRED, UNREACHED))
    g = names["g"]
    assert tuple(names["out"]["readout"].shape) == (8, 2, g.sizes["readout.out"]) and names["optimizer"].steps == 2
    assert shapes(g) == {
        "x": (8, 8, 80), "enc_hi": (8, 8, 192), "enc_lo": (8, 4, 192), "agg": (8, 2, 256),
        "readout": (8, 2, g.sizes["readout.out"]),
    }  # fmt: skip
    assert len(names["trace"].rollouts) == 1 and names["trace"].rollouts[0].ticks == 256
    check_it_learns(g, loader[0])


def test_4_micro_stepping() -> None:
    names = play(GUIDE["4"], expect=(UNREACHED,))
    g = names["g"]
    assert shapes(g) == {"x": (16, 128, 64), "enc_slow": (16, 128, 320), "head": (16, 128, 64)}
    assert names["drive_t"].shape == (16, 128, 64) and names["feat_t"].shape == (16, 128, 320)
    out = g["head"].state.output["out"]
    mse = (out[:, :-1] - names["batch"]["x"][:, 1:]).square().mean()
    assert names["loss"].item() == pytest.approx(mse.item(), rel=1e-5)
    batch = easy_batch(4, 6, 64)
    del batch["y"]
    check_it_learns(g, batch)


def test_5_predictive_coding() -> None:
    names = play(GUIDE["5"], expect=(UNREACHED,))
    g = names["g"]
    assert shapes(g) == {
        "x": (8, 300, 48), "enc": (8, 300, 192), "pred": (8, 300, 48), "err": (8, 300, 48), "ctrl": (8, 300, 128),
    }  # fmt: skip
    actual, predicted = names["enc"].state.input_drive["in"], names["pred"].state.output["out"]
    assert torch.equal(names["err"].state.output["out"], (actual - predicted).abs())
    assert names["loss"].item() == pytest.approx((actual - predicted).square().mean().item(), rel=1e-5)
    batch = easy_batch(8, 10, 48)
    del batch["y"]
    check_it_learns(g, batch)


def test_6_ports_and_aggregator() -> None:
    names = play(GUIDE["6"], GUIDE["6 mask"], expect=(INFERRED, UNREACHED))
    g, out = names["g"], names["out"]
    classes = int(names["batch"]["y"].max()) + 1
    assert shapes(g) == {"x": (12, 100, 96), "enc": (12, 100, 256), "agg": (12, 100, 256), "head": (12, 100, classes)}
    assert out["enc.out_deep"].shape == (12, 100, 192) and out["enc.out_wide"].shape == (12, 100, 192)
    assert torch.equal(out["enc.out_deep"], out["enc"][..., :192])
    assert not torch.equal(out["enc.out_wide"], out["enc"][..., :192])
    assert names["loss"].item() == 0 and names["loss"].requires_grad  # nothing is declared
    weight = names["edge_deep"].proj.weight
    i, j = torch.meshgrid(torch.arange(192), torch.arange(192), indexing="ij")
    assert not weight[(i - j).abs() > 32].any() and weight.abs().max() <= 0.4
    check_it_learns(g, easy_batch(8, 6, 96))
