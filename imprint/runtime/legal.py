"""What cannot be captured, found before it is tried."""

from __future__ import annotations

from ..errors import CaptureError
from ..graph import Graph
from ..graph.learning import Learning, Tally
from ..monitors.metric import Metric

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def check_graph(graph: Graph) -> None:
    """Refuse Python that would run while a block is captured, and never again.

    Raises:
        CaptureError: names the module, and what to use instead.
    """
    for name, part in graph.named_modules():
        if any(getattr(part, hooks, None) for hooks in HOOKS):
            raise CaptureError(
                f"module {name.removeprefix('nodes.')!r}", "it has hooks, which a captured tick would not run",
                fix="attach(monitors=[…]) gathers numbers on the device; or backend='eager'",
            )  # fmt: skip
    check_taps(graph)


def check_taps(graph: Graph) -> None:
    """Refuse a rollout whose values somebody looks at as they pass; who does is known when it has begun.

    Raises:
        CaptureError: names the module or edge.
    """
    for name, module in graph.modules_by_name.items():
        tapped = [name] * (module.tap is not None) + [e.name for e in module.incoming if e.tap is not None]
        if tapped:
            raise CaptureError(
                f"module {tapped[0]!r}", "something looks at what passes there (a GradientWatcher?)",
                fix="leave its block first; or backend='eager'",
            )  # fmt: skip


def check_learning(learning: Learning) -> None:
    """Refuse groups that learn from what has not come yet, and probes that keep more than sums.

    Raises:
        CaptureError: names the group.
    """
    for learner in learning.learners:
        if learner.lag:
            raise CaptureError(
                f"group {learner.prop.name!r}", f"its target comes {learner.lag} ticks late, and waits between blocks",
                fix="backend='eager', or a target of the same tick",
            )  # fmt: skip
    for group in learning.groups:
        for probe in group.prop.probes:
            if not isinstance(probe, Metric | Tally):
                raise CaptureError(
                    f"group {group.prop.name!r}", f"its probe {type(probe).__name__} is python that a tick would skip",
                    expected="an imprint.monitors.Metric, whose sums stay on the device", fix="backend='eager'",
                )  # fmt: skip
