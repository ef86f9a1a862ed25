"""A unit of a graph: a proto behind ports, with its own pace and its own objectives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, StateError, UnknownNameError, did_you_mean
from ..objectives import Objectives
from ..protos.proto import Proto
from .masked_linear import project
from .masks import Mask, check_constraint, make_mask
from .observer import Tap
from .ports import Nodes, PortRef, Ports
from .rate import Rate
from .state import ModuleState

if TYPE_CHECKING:
    from .edge import Edge

TAGS = ("proto_params", "recurrent_params", "all_params")
RESERVED = frozenset(dir(nn.ModuleDict()))
"""Names that no child of a torch module can have."""


class Module(nn.Module):
    """A proto with named ports: ``module["in"]``, ``module["out"]``, or ports of its own.

    Args:
        name: unique in its graph; part of parameter names.
        proto: what it computes.
        ports: widths; ``Auto`` ones are found at bind.
        schedule: its :class:`Rate`; every tick by default.

    Attributes:
        rate: what `schedule` reads and writes.
        objectives: what it is asked for.
        state: drives, outputs and recurrent state of the last rollout.
    """

    def __init__(
        self, name: str, proto: Proto | None, ports: Ports | None = None, schedule: Rate | None = None
    ) -> None:
        super().__init__()
        if not isinstance(name, str) or not name or "." in name or ":" in name:
            raise ArgumentError(
                "Module",
                "not a name",
                expected="a string without dots and colons",
                got=repr(name),
                fix="Module('enc', …)",
            )
        if name in RESERVED:
            raise ArgumentError(
                "Module", "torch needs this name itself", got=repr(name), fix=f"Module({name + '_'!r}, …)"
            )
        if proto is not None and not isinstance(proto, Proto):
            raise ArgumentError(
                f"module {name!r}", "not a proto", expected="imprint.protos.…", got=type(proto).__name__,
                fix="imprint.protos.TorchModule(module) wraps any nn.Module, TorchCell(cell) any cell(x, state)",
            )  # fmt: skip
        if ports is not None and not isinstance(ports, Ports):
            raise ArgumentError(f"module {name!r}", "ports= is no Ports", got=repr(ports), fix="ports=imprint.Ports(…)")
        self.name, self.proto, self.ports = name, proto, ports or Ports()
        self.rate = Rate()
        if schedule is not None:
            self.check_schedule(schedule)
            self.rate = schedule
        self.objectives = Objectives(name)
        self.state = ModuleState(name)
        self.nodes: dict[str, Nodes | None] = {"out": None}
        self.incoming: list[Edge] = []
        self.input_constraints: list[tuple[str, Mask | Tensor | None, float | None, bool]] = []
        self.constraints: list[tuple[str, Mask | Tensor | None, float | None]] = []
        self.views: dict[str, tuple[int, Any]] = {}
        self.masks: dict[Any, tuple[Any, Tensor]] = {}
        self.sizes: dict[str, Any] = {}
        self.live: Any = None
        self.tap: Tap | None = None

    # -- ports

    def __getitem__(self, port: str) -> PortRef:
        """The port called `port`.

        Raises:
            UnknownNameError: there is none; with near misses.
        """
        if port in self.ports.inputs:
            return PortRef(self, port, "in")
        if port in self.nodes:
            return PortRef(self, port, "out")
        if port == "in" and self.ports.group is not None:
            fix = f"connect to one of its sub-ports: {', '.join(self.ports.inputs)}"
            raise UnknownNameError(f"module {self.name!r}", "'in' is a group", fix=fix)
        raise UnknownNameError(
            f"module {self.name!r}", f"unknown port {port!r}", fix=did_you_mean(port, [*self.ports.inputs, *self.nodes])
        )

    def port_ref(self, port: str) -> PortRef:
        """The same as ``module[port]``."""
        return self[port]

    def define_port(self, name: str, nodes: Nodes) -> PortRef:
        """A new output port that shows some units of one layer; checked at bind."""
        if not isinstance(name, str) or not name or ":" in name:
            raise ArgumentError(
                f"module {self.name!r}", "not a name of a port", expected="a string without colons", got=repr(name),
                fix="define_port('out_deep', …)",
            )  # fmt: skip
        if name in self.nodes or name in self.ports.inputs or name == "in":
            raise ArgumentError(f"module {self.name!r}", f"port {name!r} exists already", fix="give it another name")
        if not isinstance(nodes, Nodes):
            raise ArgumentError(
                f"port {self.name}.{name}", "not Nodes", got=repr(nodes), fix="imprint.Nodes.of(layer=1, slice=…)"
            )
        if self.views:
            raise StateError(f"port {self.name}.{name}", "the graph is bound", fix="define ports before bind")
        self.nodes[name] = nodes
        return PortRef(self, name, "out")

    @property
    def compares_operands(self) -> bool:
        """Do its sub-ports have to agree in size, being compared unit by unit?"""
        return self.proto is not None and self.proto.elementwise

    # -- pace

    @property
    def schedule(self) -> Rate:
        """Its pace. Another one may be assigned until the graph is bound, and by ``graph.set_schedule`` later.

        Raises:
            ArgumentError: what is assigned is no rate.
            StateError: the graph is bound, and has found out who emits when.
        """
        return self.rate

    @schedule.setter
    def schedule(self, rate: Rate) -> None:
        self.check_schedule(rate)
        if self.views:
            raise StateError(
                f"module {self.name!r}", "its graph is bound, and knows who emits when", got=f"schedule = {rate}",
                fix=f"graph.set_schedule({self.name!r}, {rate})",
            )  # fmt: skip
        self.rate = rate

    def check_schedule(self, rate: Any) -> None:
        """Refuse what is no pace for this module."""
        if not isinstance(rate, Rate):
            raise ArgumentError(
                f"module {self.name!r}", "schedule= is not a rate", expected="imprint.Rate", got=repr(rate),
                fix="imprint.Rate(emit_every=2)",
            )  # fmt: skip

    # -- running

    def combine(self, port: str, drives: list[Tensor]) -> Tensor:
        """What several projected edges into one port make."""
        if self.ports.inputs[port].combine == "concat":
            total = drives[0] if len(drives) == 1 else torch.cat(drives, -1)
        else:
            total = drives[0]
            for drive in drives[1:]:
                total = total + drive
        return total if self.tap is None else self.tap(f"{self.name}.{port}", total)

    def proto_input(self, drives: dict[str, Tensor]) -> Any:
        """Drives of all input ports as the proto takes them: one tensor, or a dict of sub-drives."""
        assert self.proto is not None
        group = self.ports.group
        if group is None:
            return drives["in"]
        if self.proto.grouped:
            return {k.removeprefix("in."): v for k, v in drives.items()}
        parts = list(drives.values())
        return torch.cat(parts, -1) if group.layout == "disjoint" else sum(parts[1:], parts[0])

    def step_once(self, drive: Any, state: Any) -> tuple[Any, list[Tensor]]:
        """One inner step of the proto: ``(new state, outputs of its layers)``."""
        assert self.proto is not None
        return self.proto.step(drive, state)

    def view(self, port: str, outs: list[Tensor]) -> Tensor:
        """What an output port shows of the layers' outputs ``[..., width]``."""
        layer, index = self.views[port]
        out = outs[layer] if index is None else outs[layer][..., index]
        return out if self.tap is None else self.tap(f"{self.name}.{port}", out)

    # -- constraints and parameters

    def set_input_mask(self, port: str = "in", mask: Mask | Tensor | None = None, persist: bool = True) -> None:
        """Mask the projections of every edge into `port`, those that come later too."""
        self._constrain_input(port, mask, None, persist)

    def limit_weights(self, port: str = "in", max_abs: float | None = None, persist: bool = True) -> None:
        """Bound the projections of every edge into `port`, those that come later too."""
        self._constrain_input(port, None, max_abs, persist)

    def _constrain_input(self, port: str, mask: Any, max_abs: float | None, persist: bool) -> None:
        ports = list(self.ports.inputs) if port == "in" else [self[port].name]
        if self[ports[0]].kind != "in":
            raise UnknownNameError(
                f"module {self.name!r}", f"{port!r} is no input port", fix=did_you_mean(port, self.ports.inputs)
            )
        edges = [edge for edge in self.incoming if edge.target.name in ports]
        check_constraint(f"module {self.name!r}, port {port!r}", mask, max_abs)
        for edge in edges:
            edge.check_constraint(mask, max_abs)
        for edge in edges:
            edge.constrain(mask, max_abs, persist)
        self.input_constraints += [(name, mask, max_abs, persist) for name in ports]

    def constrain(
        self, tag: str = "recurrent_params", mask: Mask | Tensor | None = None, max_abs: float | None = None
    ) -> None:
        """Keep the matrices of a tag inside a mask ``[rows, columns]`` and a bound, whatever the optimizer does.

        Square blocks stacked on each other (a GRU's three gates) share one square mask.
        """
        where = f"module {self.name!r}, {tag}"
        self._check_tag(tag)
        check_constraint(where, mask, max_abs)
        constraint = (tag, mask, max_abs)
        if self.views:
            for weight in self._constrained(tag, mask):
                self._mask_of(weight, mask, where)
            self._project(*constraint)
        self.constraints.append(constraint)

    @property
    def constrained(self) -> bool:
        """Is there anything to put back after a step?"""
        return bool(self.constraints) or any(edge.constraints for edge in self.incoming)

    def project_(self) -> None:
        """Put recurrent weights and incoming projections back inside their constraints."""
        for constraint in self.constraints:
            self._project(*constraint)
        for edge in self.incoming:
            edge.project_()

    def _project(self, tag: str, mask: Mask | Tensor | None, max_abs: float | None) -> None:
        for weight in self._constrained(tag, mask):
            project(weight, self._mask_of(weight, mask, f"module {self.name!r}, {tag}"), max_abs)

    def _constrained(self, tag: str, mask: Any) -> list[Tensor]:
        """The weights of a tag; a constraint on none of them would hold nothing."""
        weights = list(self.iter_parameters_by_tag(tag))
        if not any(mask is None or weight.dim() == 2 for weight in weights):
            raise ArgumentError(
                f"module {self.name!r}, {tag}", "there are no such parameters to constrain",
                expected="matrices" if mask is not None else "parameters",
                got=type(self.proto).__name__, fix="module.set_input_mask and limit_weights hold for its edges",
            )  # fmt: skip
        return weights

    def _mask_of(self, weight: Tensor, mask: Mask | Tensor | None, where: str) -> Tensor | None:
        """Made once for a shape and place: it is asked for after every step."""
        if mask is None or weight.dim() != 2:
            return None
        rows, columns = weight.shape
        key = (id(mask), rows, columns, weight.dtype, weight.device)
        if key not in self.masks:
            blocks = rows // columns if rows % columns == 0 and rows > columns else 1
            made = make_mask(mask, rows // blocks, columns, where).repeat(blocks, 1).to(weight)
            self.masks[key] = mask, made.detach()  # the former lives as long as its id stands for it
        return self.masks[key][1]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "masks": {}}

    def iter_parameters_by_tag(self, tag: str) -> Iterator[Tensor]:
        """Parameters of the proto: ``proto_params`` (or ``all_params``), ``recurrent_params``.

        Raises:
            UnknownNameError: no such tag.
        """
        self._check_tag(tag)
        if self.proto is None:
            return iter(())
        return self.proto.recurrent_parameters() if tag == "recurrent_params" else self.proto.parameters()

    def _check_tag(self, tag: str) -> None:
        if tag not in TAGS:
            raise UnknownNameError(f"module {self.name!r}", f"unknown tag {tag!r}", fix=did_you_mean(tag, TAGS))

    def extra_repr(self) -> str:
        """Name, ports and pace."""
        return f"{self.name!r}, {self.ports}, {self.schedule}"
