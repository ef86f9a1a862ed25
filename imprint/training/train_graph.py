"""Training of a graph."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch.utils.data import Dataset

from ..data import Batches, as_batches
from ..diagnostics import GradientWatcher
from ..errors import ArgumentError
from ..graph import Graph
from ..managers import GraphManager, attach
from ..monitors.sinks import Sink
from ..objectives import BatchKey
from ..runtime import Plan as RuntimePlan
from .adam import AdamOptions
from .checks import check_function, check_number, check_seed, folder_of
from .epochs import Epochs
from .global_loss import GlobalLoss, LossFn
from .graph_subject import WHOLE, GraphSubject, MetricFn
from .history import Epoch, History
from .lines import Gradients, Lines
from .loop import Plan, fit, seed_all
from .recipes import LastStepCE

WHERE = "train_graph"


def train_graph(
    graph: Graph,
    dataset: Any,
    *,
    epochs: int = 1,
    lr: float | None = None,
    log_every: int | None = None,
    seed: int | None = None,
    loss_fn: LossFn | None = None,
    metric_fn: MetricFn | None = None,
    grad_clip: float | None = None,
    use_adamw: bool | None = None,
    weight_decay: float | None = None,
    betas: tuple[float, float] | None = None,
    val_dataset: Any = None,
    val_every: int = 1,
    val_loss_fn: LossFn | None = None,
    val_metric_fn: MetricFn | None = None,
    grad_monitor: Any = None,
    manager: GraphManager | None = None,
    callbacks: Iterable[Sink | Callable[[Epoch], object]] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    every: int | None = None,
    resume: bool = True,
    schedule: str | None = "epoch",
    batch_size: int | None = None,
    progress: bool = True,
    plan: RuntimePlan | None = None,
) -> History:
    """Train a graph for some epochs, validate it, and return what was found.

    Modules learn locally, by the graph's manager. Without one, rule ``local`` is attached for the time of the training:
    declared objectives, and local heads or predictions for modules that declare none. A `loss_fn` that is no recipe is
    a global loss: it is added to what is declared, and one optimizer follows the gradient of the sum through every edge
    that is open.

    With a folder in `checkpoint` the run can be killed at any moment and called again: see
    :func:`imprint.training.train_model`, whose files, exactness and loop it shares.

    Args:
        graph: bound, attached, or neither.
        dataset: a :class:`imprint.data.SequenceDataset`, a DataLoader or list of dicts, a Dataset of dicts, a dict of
            tensors, a function; see :func:`imprint.data.as_batches`.
        epochs: how many in all; a resumed run takes those that are left.
        lr: of Adam, for each module; 1e-3. It applies, with the next but one line, where ``attach`` got no
            ``optimizer=``; a manager's default optimizers stay if none of them is given.
        log_every: steps between two printed lines; None prints none.
        seed: of torch, Python and NumPy, set before weights are made; a resumed run does not look at it.
        loss_fn: ``loss_fn(out, batch) -> scalar``. :func:`last_step_ce_loss` is declared as an objective of its module,
            in place of a cross entropy with the same labels.
        metric_fn: ``metric_fn(out, batch) -> float``, shown and recorded as ``"accuracy"`` (:func:`last_step_accuracy`)
            or ``"metric"``, or under its attribute ``name``.
        grad_clip: largest gradient norm of a gradient group; under a global loss, of the whole graph.
        use_adamw, weight_decay, betas: of the optimizer; Adam without decay.
        val_dataset: the same as `dataset`, never shuffled.
        val_every: epochs between two validations.
        val_loss_fn: what is called loss there. By default `loss_fn` and what is declared, or, where nothing is, the
            local heads and predictions that the rule has given (a contrast needs its signal, and is left out).
        val_metric_fn: `metric_fn` by default.
        grad_monitor: :class:`imprint.GradientWatcher`; its summary is printed with every line, or once an epoch.
        manager: what ``attach`` returned; the graph's own is found without it.
        callbacks: sinks (they get all metrics, as in ``train_model``), and functions called with each
            :class:`Epoch` that is done; True ends the training.
        checkpoint: folder for ``last.pt`` and ``best.pt``; None writes none.
        every: steps between checkpoints within an epoch.
        resume: go on from the folder's ``last.pt``, if there is one; else start anew.
        schedule: when the manager's schedulers step: ``"epoch"``, ``"step"`` (a batch), ``"metric"``, None.
        batch_size: of tables and Datasets, instead of their own; validation data that has batches keeps them.
        progress: show a bar.
        plan: of this graph, with its manager attached: it runs what is learned from, the graph what is validated.
            A resumed run needs one that was compiled with ``on_stale="recapture"``.

    Raises:
        ArgumentError: options that contradict each other, such as a global loss with a manager.
        CheckpointError: the checkpoint is damaged, or of another graph, rule or data; nothing was changed.
        DataError: the data does not hold together.
        NonFiniteError: names the module or loss; the last checkpoint is still there.

    >>> import imprint
    >>> src, enc = imprint.Source("x"), imprint.Module("enc", imprint.protos.GRUStack(hidden=16))
    >>> head = imprint.Module("head", imprint.protos.MLP([16, imprint.Auto]))
    >>> graph = Graph()
    >>> _ = graph.connect(src["out"], enc["in"]), graph.connect(enc["out"], head["in"])
    >>> data = imprint.data.load_demo_dataset(samples=64, num_classes=2)
    >>> _ = imprint.training.prepare_seq2static_classification(graph, data)
    >>> metric = imprint.training.last_step_accuracy()
    >>> history = train_graph(graph, data, epochs=4, lr=3e-3, seed=0, metric_fn=metric, progress=False)
    >>> history.best.train["accuracy"] > 0.9
    True
    """
    if not isinstance(graph, Graph):
        raise ArgumentError(
            WHERE, "this is no graph", expected="imprint.Graph", got=type(graph).__name__,
            fix="train_graph(graph, dataset, ...); imprint.train_model for attached models",
        )  # fmt: skip
    adam = AdamOptions(lr, use_adamw, weight_decay, betas)
    check_number(WHERE, "grad_clip", grad_clip, "a norm", "a number above 0", lambda norm: norm > 0)
    check_seed(WHERE, seed)
    for name, fn in (("loss_fn", loss_fn), ("val_loss_fn", val_loss_fn)):
        check_function(WHERE, name, fn, f"{name}(out, batch) -> scalar")
    for name, fn in (("metric_fn", metric_fn), ("val_metric_fn", val_metric_fn)):
        check_function(WHERE, name, fn, f"{name}(out, batch) -> float")
    _check_monitor(graph, grad_monitor)
    sinks, calls = _told_apart(callbacks)
    sinks += [Lines(WHOLE)] if log_every is not None else []
    sinks += [Gradients(grad_monitor)] if grad_monitor is not None else []
    folder = folder_of(WHERE, checkpoint)
    course = Plan(
        WHERE, epochs, None if val_dataset is None else val_every, folder, every, log_every, schedule, progress, sinks,
        calls, {"log": "log_every"},
    )  # fmt: skip
    train = as_batches(dataset, batch_size=batch_size)
    val = (
        None
        if val_dataset is None
        else as_batches(val_dataset, batch_size=_size(val_dataset, batch_size), shuffle=False)
    )
    if val is None and (val_loss_fn is not None or val_metric_fn is not None or val_every != 1):
        raise ArgumentError(WHERE, "there is nothing to validate", fix="give val_dataset=")
    if manager is None:
        manager = graph.manager
    elif graph.manager is not manager:
        raise ArgumentError(WHERE, "manager= is not attached to this graph", fix="imprint.managers.attach(graph, …)")
    if manager is None and schedule not in ("epoch", None):
        raise ArgumentError(
            WHERE, f"schedule={schedule!r}, and there is no schedule to step",
            fix="imprint.managers.attach(graph, …, scheduler=) first",
        )  # fmt: skip
    if seed is not None:
        seed_all(seed)
    _check_plan(graph, plan)
    own = manager is None
    learner = _learner(graph, train, manager, loss_fn, adam, grad_clip)
    try:
        subject = GraphSubject(graph, learner, metric_fn, val, val_loss_fn, val_metric_fn, plan)
        subject.check_validation()
        return fit(subject, Epochs(train, 1, WHERE), course, resume)
    finally:
        if own and isinstance(learner, GraphManager):
            learner.detach()


def _size(data: Any, batch_size: int | None) -> int | None:
    """The batch size for data that has no batches yet."""
    return batch_size if isinstance(data, Dataset | Mapping | tuple) else None


def _check_plan(graph: Graph, plan: Any) -> None:
    """Refuse a plan of another graph, and one for which nothing could learn."""
    if plan is None:
        return
    if not isinstance(plan, RuntimePlan) or plan.graph is not graph:
        raise ArgumentError(
            WHERE, "plan= is no plan of this graph", expected="what recording.compile(…) returned", got=repr(plan),
            fix="with imprint.record(graph) as recording: …; plan=recording.compile(…)",
        )  # fmt: skip
    if graph.manager is None:
        raise ArgumentError(
            WHERE, "plan= of a graph without a manager, whose rollouts do not learn",
            fix="imprint.managers.attach(graph, …) before it is recorded; or leave plan= out",
        )  # fmt: skip


def _check_monitor(graph: Graph, monitor: Any) -> None:
    """Refuse what cannot be read, and a watcher that sees nothing of this graph."""
    if monitor is None:
        return
    if isinstance(monitor, type) or not callable(getattr(monitor, "pop_summary", None)):
        raise ArgumentError(
            WHERE, "grad_monitor= watches nothing", expected="something with pop_summary(top_k=)", got=repr(monitor),
            fix="grad_monitor=imprint.GradientWatcher(graph)",
        )  # fmt: skip
    if isinstance(monitor, GradientWatcher) and not any(monitor is observer for observer in graph.observers):
        raise ArgumentError(
            WHERE, "grad_monitor= watches another graph, or is closed", expected="a watcher of this graph",
            got=repr(monitor), fix="grad_monitor=imprint.GradientWatcher(graph)",
        )  # fmt: skip


def _told_apart(callbacks: Iterable[Any]) -> tuple[list[Sink], list[Callable[[Epoch], object]]]:
    sinks, calls = [], []
    if isinstance(callbacks, Sink) or not isinstance(callbacks, Iterable):
        raise ArgumentError(
            WHERE, "callbacks= is no list", expected="a list of Sinks and functions", got=repr(callbacks),
            fix="callbacks=[callback]",
        )  # fmt: skip
    for each in callbacks:
        if isinstance(each, Sink):
            sinks.append(each)
        elif callable(each) and not isinstance(each, type):
            calls.append(each)
        else:
            raise ArgumentError(
                WHERE, "not a callback", expected="a Sink, or a function of an Epoch", got=repr(each),
                fix="callbacks=[lambda epoch: print(epoch.val)]",
            )  # fmt: skip
    return sinks, calls


def _learner(
    graph: Graph, data: Batches, manager: GraphManager | None, loss_fn: LossFn | None, adam: AdamOptions,
    grad_clip: float | None,
) -> GraphManager | GlobalLoss:  # fmt: skip
    """What learns: the manager, one attached for this training, or a global loss."""
    if isinstance(loss_fn, LastStepCE):
        loss_fn.install(graph, data.num_classes if loss_fn.label_key == "y" else None)
        loss_fn = None
    if loss_fn is not None and manager is not None:
        raise ArgumentError(
            WHERE, "a global loss would cross the boundaries of a graph that learns locally",
            expected="no manager with loss_fn=", got=f"rule {manager.rule.name!r}",
            fix="declare it on a module, module.objectives.add(fn); or manager.detach()",
        )  # fmt: skip
    batch = data.peek()
    classes = _classes(graph, data)
    if graph.num_classes is None and not graph.bound:
        graph.num_classes = classes
    if not graph.bound:
        graph.bind(batch)
    graph.bind_objectives(batch)
    if loss_fn is not None:
        return GlobalLoss(graph, loss_fn, adam, grad_clip)
    if manager is None:
        known = graph.num_classes or classes
        manager = attach(graph, "local", optimizer=adam, grad_clip=grad_clip, num_classes=known)
        try:
            return manager.bind(batch)
        except BaseException:
            manager.detach()
            raise
    _check_options(manager, adam, grad_clip)
    if manager.num_classes is None:
        manager.num_classes = classes
    _equip(manager.bind(batch), adam, grad_clip)
    return manager


def _classes(graph: Graph, data: Batches) -> int | None:
    """The dataset's number of classes, where it is that of all labels the graph looks at."""
    targets = [t.target for m in graph.modules_by_name.values() for t in m.objectives if t.kind == "ce"]
    return data.num_classes if all(target == BatchKey("y") for target in targets) else None


def _check_options(manager: GraphManager, adam: AdamOptions, grad_clip: float | None) -> None:
    """Refuse what `attach` was told already."""
    if adam.given and manager.optimizer is not None:
        raise ArgumentError(
            WHERE, f"{'=, '.join(adam.given)}= beside an optimizer that attach got", expected="one of the two",
            fix="leave them out, or attach without optimizer=",
        )  # fmt: skip
    if grad_clip is not None and manager.grad_clip is not None:
        got = f"{grad_clip} and {manager.grad_clip}"
        raise ArgumentError(
            WHERE, "grad_clip= beside the one that attach got", expected="one of the two", got=got,
            fix="leave it out here",
        )  # fmt: skip


def _equip(manager: GraphManager, adam: AdamOptions, grad_clip: float | None) -> None:
    """Let the options apply to a manager that was attached without them: new optimizers, and their schedules."""
    for name, prop in manager.propagators.items():
        if grad_clip is not None:
            prop.grad_clip = grad_clip
        if adam.given:
            held = manager.frozen.get(name, prop.optimizers)
            held[:] = [adam([p for group in o.param_groups for p in group["params"]]) for o in held]
            manager.schedulers[name] = [manager.scheduler(o) for o in held] if manager.scheduler is not None else []
