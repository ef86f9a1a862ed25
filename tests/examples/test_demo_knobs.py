"""The knobs of the demonstrations do what they say."""

from __future__ import annotations

import importlib
import re
from typing import Any

import demo_micro_stepping
import demo_multi_port
import demo_predictive_coding as demo
import demo_slicer_encoder
import pytest
import torch

import imprint
from imprint.runtime import codegen

from common import parse, sequences, train_and_test


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(demo.CONFIG, "hidden", 16)


def gradients(confine: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[float, float]:
    """Of the lower layer's weights: from the upper layer's error, and from the task's loss."""
    monkeypatch.setitem(demo.CONFIG, "confine_pc_gradients", confine)
    train, _ = sequences(parse([]))
    graph, found = demo.build(train), []
    batch = next(train.iter_batches())
    graph.rollout(batch)
    for name in ("high_predictor.mse", "head.ce"):
        graph.zero_grad()
        graph.losses()[name].backward(retain_graph=True)
        found.append(sum(p.grad.abs().sum().item() for p in graph["low"].proto.parameters() if p.grad is not None))
    return found[0], found[1]


@pytest.mark.usefixtures("small")
def test_confined_layers_learn_from_their_own_error_alone_and_the_task_steers_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    above, task = gradients(True, monkeypatch)
    assert above == 0 and task == 0
    above, task = gradients(False, monkeypatch)
    assert above > 0 and task == 0


@pytest.mark.usefixtures("small")
def test_printed_losses_are_those_of_all_the_test_data(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made, build = [], demo.build
    monkeypatch.setattr(demo, "build", lambda train: made.append(build(train)) or made[-1])
    demo.main(["--epochs", "1"])
    printed = dict(re.findall(r"(\S+) on the test data: (\S+)", capsys.readouterr().out))
    _, test = sequences(parse([]))
    with torch.no_grad():
        made[0].eval().rollout(next(test.iter_batches(shuffle=False, batch_size=len(test))))
    assert printed == {name: f"{loss.item():.4f}" for name, loss in made[0].losses().items()}


@pytest.mark.usefixtures("small")
def test_gradients_are_logged_when_asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for log in (False, True):
        monkeypatch.setitem(demo.CONFIG, "log_gradients", log)
        demo.main(["--epochs", "2"])
        printed.append(capsys.readouterr().out)
    assert "gradient" not in printed[0] and printed[1].count("gradient") >= 2
    lines = [text.splitlines()[-1].split()[:4] for text in printed]
    assert lines[0] == lines[1]  # watching changes nothing


def test_padding_is_no_variance_to_be_predicted() -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([6, 2, 3])
    ragged = imprint.SequenceDataset(torch.randn(3, 6, 4), lengths=lengths)
    graph = demo_micro_stepping.build(imprint.SequenceDataset(torch.randn(3, 6, 4), [0, 1, 2]))
    left = demo_micro_stepping.unknown(graph, ragged)
    wrong = right = 0.0
    for i, ticks in enumerate(lengths.tolist()):
        x = ragged.x[i : i + 1, :ticks]
        guess = graph.rollout({"x": x})["following"]
        wrong += (guess[:, :-1] - x[:, 1:]).square().sum().item()
        right += x[:, 1:].square().sum().item()
    assert left == pytest.approx(wrong / right, rel=1e-5)


@pytest.mark.parametrize("made", [demo_micro_stepping, demo_multi_port])
def test_sequences_of_one_feature_are_no_obstacle(made: Any) -> None:
    train = imprint.SequenceDataset(torch.randn(3, 6, 1), [0, 1, 2])
    assert made.build(train).rollout(next(train.iter_batches()))["head"].shape == (3, 6, 3)


def test_slices_forget_and_the_context_rests() -> None:
    train, _ = sequences(parse([]))
    graph, batch = demo_slicer_encoder.build(train), next(train.iter_batches())
    first = graph.rollout(batch)["slicer"]
    other = batch | {"x": torch.cat([torch.randn_like(batch["x"][:, :2]), batch["x"][:, 2:]], 1)}
    second = graph.rollout(other)["slicer"]
    assert not torch.equal(first[:, 0], second[:, 0]) and torch.equal(first[:, 1:], second[:, 1:])
    assert graph["context"].state.input_drive["in"].shape[1] == 4


@pytest.mark.parametrize("name", ["demo_slicer_encoder", "demo_predictive_coding"])
@pytest.mark.usefixtures("small")
def test_compiled_demos_learn_what_the_others_learn(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a plan: blocks are captured, and run call by call so that no compiler is needed; or it says why not."""
    monkeypatch.setitem(codegen.generators, "inductor", codegen.call_by_call)
    module, weights = importlib.import_module(name), []
    for flags in ([], ["--compiled"]):
        args = parse(["--epochs", "1", *flags], graph=True)
        train, test = sequences(args)
        few = imprint.SequenceDataset(train.x[:96], train.y[:96], num_classes=10, batch_size=32, seed=0)
        graph = module.build(few)
        train_and_test(graph, "local", (few, test), args)
        weights.append(dict(graph.named_parameters()))
    said = capsys.readouterr().out
    assert ("own engine" in said and "ticks late" in said) == (name == "demo_predictive_coding")
    for key, p in weights[0].items():
        torch.testing.assert_close(weights[1][key], p, atol=2e-4, rtol=0)
