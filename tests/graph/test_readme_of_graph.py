"""Every code block of the graph's document runs as it is written, has its shapes, learns, and stays alive."""

from __future__ import annotations

import re

import pytest
import torch

import imprint

from references.guide import INFERRED, UNREACHED, check_it_learns, easy, easy_batch, evaluate, play
from references.guide_snippets import README


def test_core_api(capsys: pytest.CaptureFixture[str]) -> None:
    train, val = (easy(s, 128, 8, 8) for s in ("train", "val"))
    names = play(README["core"], dataset=train, val_dataset=val)
    graph, ce = names["graph"], names["head"].objectives
    assert [(t.kind, t.at) for t in ce] == [("ce", "last")]  # declared twice, counted once
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert [line.split(":")[0] for line in lines if "val" not in line] == ["step 10", "step 20", "step 30", "step 40"]
    shown = [float(re.search(r"val loss (\d\.\d+)", line)[1]) for line in lines if "val" in line]  # type: ignore[index]
    assert len(shown) == 5 and shown[-1] < 0.9 * shown[0]
    accuracies = [float(re.search(r"accuracy (\d\.\d+) \| val", line)[1]) for line in lines if "val" in line]  # type: ignore[index]
    assert accuracies[-1] > accuracies[0] > 0
    out = graph.rollout(easy_batch(3, 5, 8))
    assert (
        out["enc"].shape == (3, 5, 128)
        and out["head"].shape == (3, 5, 4)
        and names["enc"].state.recurrent.shape == (2, 3, 128)
    )
    torch.manual_seed(7)
    fresh = play(README["core"].split("imprint.train_graph")[0], dataset=train)["graph"]
    fresh.bind(easy_batch(3, 5, 8))
    check_it_learns(fresh, easy_batch(8, 6, 8))
    batch = easy_batch(8, 6, 8)
    (_, live), (_, still) = evaluate(fresh, batch), evaluate(graph, batch)
    assert all(still[name] > 0.1 * live[name] for name in live)  # params_l2 drives nothing to zero


def test_stop_grad_on_an_edge() -> None:
    names = play(
        """
graph = imprint.Graph(stop_grad=False)
src, encoder = imprint.Source("x"), imprint.Module("encoder", imprint.protos.GRUStack(hidden=12))
aux = imprint.Module("aux", imprint.protos.GRUStack(hidden=10))
head = imprint.Module("head", imprint.protos.MLP([10, 4]))
graph.connect(src["out"], encoder["in"])
graph.connect(aux["out"], head["in"])
encoder.objectives.contrastive(target=Targets.shifted_input(src, +1))
head.objectives.ce(target=Targets.batch_key("y"))
""",
        README["stop_grad"],
    )
    graph, batch = names["graph"], easy_batch(8, 6, 5)
    graph.bind(batch)
    grads = []
    for stop in (True, False):
        names["edge"].set_stop_grad(stop)
        graph.zero_grad()
        graph.rollout(batch)
        graph.losses()["head.ce"].backward()
        grads.append(
            {name: None if p.grad is None else p.grad.abs().sum().item() for name, p in graph.named_parameters()}
        )
    upstream = [n for n in grads[0] if n.startswith(("nodes.encoder.proto", "edges.x_out"))]
    assert upstream and all(grads[0][n] is None for n in upstream) and all(grads[1][n] > 0 for n in upstream)
    kept = [n for n in grads[0] if n.startswith(("edges.encoder_out__aux_in", "nodes.aux.proto", "nodes.head"))]
    assert kept and all(grads[0][n] > 0 for n in kept)
    names["edge"].set_stop_grad(True)
    before, _ = evaluate(graph, batch)
    assert set(before) == {"encoder.contrastive", "head.ce"}
    check_it_learns(graph, batch)


def test_gradient_diagnostics(capsys: pytest.CaptureFixture[str]) -> None:
    dataset = easy("train", 32, 6, 5)

    def build_graph(data: imprint.SequenceDataset) -> imprint.Graph:
        graph, src = imprint.Graph(), imprint.Source("x")
        enc = imprint.Module("enc", imprint.protos.GRUStack(hidden=10))
        head = imprint.Module("head", imprint.protos.MLP([10, imprint.Auto]))
        graph.connect(src["out"], enc["in"])
        graph.connect(enc["out"], head["in"])
        imprint.prepare_seq2static_classification(graph, data)
        return graph

    names = play(README["gradients"], build_graph=build_graph, dataset=dataset, cfg={"epochs": 3, "lr": 3e-3})
    graph, printed = names["graph"], capsys.readouterr().out
    assert printed.count("head") >= 3 and printed.count("enc") >= 3  # a summary an epoch
    assert not graph.observers  # closed
    watcher = imprint.GradientWatcher(graph)
    graph.rollout(next(dataset.iter_batches()))
    with pytest.warns(UserWarning, match=UNREACHED):
        graph.loss().backward()
    summary = watcher.pop_summary(top_k=5)
    assert summary.ports["enc.out"].norm == 0 and summary.modules["head"].norm > 0  # the edge stops it
    pytest.importorskip("matplotlib")
    assert imprint.plot_gradient_heatmap(summary, section="modules").axes
    watcher.close()
    check_it_learns(graph, next(dataset.iter_batches(shuffle=False)))


def test_usage_patterns_and_objectives() -> None:
    """The names that the text speaks of, in one graph each."""
    names = play(
        """
g, src = imprint.Graph(), imprint.Source("x")
enc = imprint.Module("enc", imprint.protos.GRUStack(12, layers=1, layernorm=False, reset_every=4))
head = imprint.Module("head", imprint.protos.MLP([12, Auto], act="relu"))
g.connect(src["out"], enc["in"])
g.connect(enc["out"], head["in"])
head.objectives.mse(on="out", target=Targets.shifted_input(src, +1))
head.objectives.activity_l1("out", 1e-3)
head.objectives.activity_l2("out", 1e-3)
head.objectives.params_l1("proto_params", 1e-5)
enc.objectives.params_l2("recurrent_params", 1e-5)
g.bind(batch)
""",
        batch={"x": easy_batch(4, 8, 6)["x"]},
    )
    enc = names["enc"]
    tags = {
        tag: [*map(id, enc.iter_parameters_by_tag(tag))] for tag in ("proto_params", "recurrent_params", "all_params")
    }
    assert tags["proto_params"] == tags["all_params"] and 0 < len(tags["recurrent_params"]) < len(tags["all_params"])
    check_it_learns(names["g"], {"x": easy_batch(8, 8, 6)["x"]})
    once = play("""
g, src = imprint.Graph(), imprint.Source("x")
enc, head = imprint.Module("enc", imprint.protos.GRUStack(12)), imprint.Module("head", imprint.protos.MLP([12, Auto]))
g.connect(src["out"], enc["in"])
g.connect(enc["out"], head["in"])
imprint.prepare_seq2static_classification(g, dataset, emit_once=True)
out = g.rollout(next(dataset.iter_batches()))
classes = imprint.infer_num_classes(dataset)
""", dataset=easy("train", 8, 8, 6))  # fmt: skip
    assert once["out"]["head"].shape == (8, 1, 4) and once["classes"] == 4
    check_it_learns(once["g"], easy_batch(8, 8, 6))


def test_labels_that_no_objective_reads_make_a_width_with_a_warning() -> None:
    code = README["core"].split("imprint.prepare")[0]
    names = play(code + "out = graph.rollout(batch)", batch=easy_batch(8, 4, 3), expect=(INFERRED,))
    assert names["out"]["head"].shape == (8, 4, 4)
