"""What the guide writes of plans, word for word, on captured ticks."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import imprint

from references.guide import INFERRED, UNREACHED
from references.guide_snippets import GUIDE
from references.plan_runs import close, compiled

WRITTEN = 'backend="cuda_graph",'
BACKENDS = {
    "eager": 'backend="eager",',
    "inductor": 'backend="inductor", codegen="eager",',
    "cuda_graph": 'backend="cuda_graph", allow_emulation=True,',
}


def on(backend: str, section: str) -> str:
    """A section of the guide; what stands for a GPU is replaced, and nothing else."""
    assert GUIDE[section].count(WRITTEN) == 1
    return GUIDE[section].replace("cuda_graph", "CUDA").replace('backend="CUDA",', BACKENDS[backend])


def small(rows: int = 3, ticks: int = 10, seed: int = 0) -> dict[str, Tensor]:
    own = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(rows, ticks, 4, generator=own), "y": torch.randint(3, (rows,), generator=own)}


def two_layers() -> imprint.Graph:
    torch.manual_seed(0)
    g, src = imprint.Graph(), imprint.Source("x")
    enc = imprint.Module("enc", imprint.protos.GRUStack(hidden=5, layers=2))
    head = imprint.Module("head", imprint.protos.MLP([5, imprint.Auto]))
    g.connect(src["out"], enc["in"])
    g.connect(enc["out"], head["in"], stop_grad=False)
    head.objectives.ce(target=imprint.Targets.batch_key("y"), num_classes=3)
    return g.bind(small())


def played(source: str, **names: Any) -> dict[str, Any]:
    """As :func:`references.guide.play`, which would replace the backend."""
    exec(compile(source, "<guide>", "exec"), names)
    return names


@pytest.mark.parametrize("backend", ["inductor", "cuda_graph"])
def test_1_8_a_plan_has_the_graphs_rollout_loss_and_gradients(backend: str) -> None:
    batch, batch2, eager, g = small(), small(seed=1), two_layers(), two_layers()
    names = played(on(backend, "1.8"), g=g, batch=batch, batch2=batch2)
    out = eager.rollout(batch2)
    loss = eager.loss()
    loss.backward()
    for name in ("x", "enc", "head"):
        close(names["out"][name], out[name], name, 1e-6)
    close(names["loss"], loss, "loss", 1e-6)
    for (name, p), q in zip(eager.named_parameters(), g.parameters(), strict=True):
        assert p.grad.abs().max() > 0
        close(q.grad, p.grad, name, 2e-6)


def test_gradients_add_up_and_an_optimizer_goes_on_from_them() -> None:
    """As in any loop of torch: two losses and two backward calls, then a step; then again."""
    eager, g = two_layers().to(torch.float64), two_layers().to(torch.float64)
    plan = compiled(g, small())
    optimizers = [torch.optim.Adam(each.parameters(), 0.05, eps=1e-4) for each in (eager, g)]
    for i in range(3):
        for each, run, optimizer in zip((eager, g), (eager, plan), optimizers, strict=True):
            optimizer.zero_grad()
            for k in range(2):
                run.rollout(small(seed=2 * i + k))
                (run.loss() * (k + 1)).backward()
            optimizer.step()
            assert each.clock.tick >= 20
    for (name, p), q in zip(eager.named_parameters(), g.parameters(), strict=True):
        close(q.grad, p.grad, f"gradient {name}")
        close(q, p, name)


def test_a_loss_of_ones_own_reaches_the_weights() -> None:
    """What comes out is differentiable, also parts of it."""
    eager, g = two_layers().to(torch.float64), two_layers().to(torch.float64)
    plan = compiled(g, small())
    for run in (eager, plan):
        out = run.rollout(small(seed=4))
        (out["head"][:, -1].square().sum() + out["enc"][:, ::3].sin().sum()).backward()
    assert sum(p.grad is not None for p in eager.parameters()) > 4
    for (name, p), q in zip(eager.named_parameters(), g.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            close(q.grad, p.grad, name)


class Descent:
    """What the guide calls ``optimizer``: one step along the gradients, which the guide adds up over batches."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}

    def step(self) -> None:
        with torch.no_grad():
            for p in self.names["g"].parameters():
                p -= 0.0 if p.grad is None else 0.1 * p.grad


def test_3_the_training_loop_that_uses_the_plan() -> None:
    """Gradients and weights after three steps; smaller layers and shorter batches, all else as it is written."""
    found = {}
    for backend in ("eager", "inductor"):
        source = on(backend, "3").replace("torch.randn(32, 256, 80)", "torch.randn(4, 16, 80)")
        source = source.replace("(32, 64)", "(4, 4)").replace("192", "12").replace("256", "14")
        own = torch.Generator().manual_seed(5)
        xs = [torch.randn(4, 16, 80, generator=own) for _ in range(3)]
        loader = [{"x": x, "y": torch.randint(100, (4, 4), generator=own)} for x in xs]
        optimizer = Descent()
        names = {
            "train_loader": loader,
            "optimizer": optimizer,
            "torch": torch,
            "imprint": imprint,
            "Auto": imprint.Auto,
        }
        optimizer.names = names
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", f"(?s).*({INFERRED}|{UNREACHED})")
            exec(compile(source, "<guide>", "exec"), names)
        found[backend] = names["g"]
        assert names["plan"].backend.name == backend
    assert found["inductor"].clock.tick == found["eager"].clock.tick == 4 * 16
    for (name, p), q in zip(found["eager"].named_parameters(), found["inductor"].parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        close(q, p, name, 2e-6)
        if p.grad is not None:
            close(q.grad, p.grad, f"gradient {name}", 2e-6)
