"""Published figures, and how each is reproduced: plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..errors import UnknownNameError, did_you_mean

TOLERANCE = 0.2
"""A run counts as a reproduction within this share of the published error; settled before anything was run."""


@dataclass(frozen=True)
class Published:
    """One figure and its recipe.

    Args:
        name: of the command.
        data: name of the data set that the figure is of.
        rule: how units learn.
        options: of the rule.
        net: ``"dense"``, ``"vgg8b"`` or ``"random_blocks"``.
        sizes: arguments of the net.
        init: how weights of linear maps are drawn: as ``"torch"`` does, uniformly after ``"he"``, or as networks of
            ``"softhebb"`` do.
        layers: a regex of the units.
        scale: of inputs: ``"standard"`` (mean 0, deviation 1) or ``"unit"`` (0 to 1).
        optimizer: name in ``torch.optim`` and its settings; empty: the rule's own.
        falls: shares of the epochs after which the step size is multiplied by `factor`.
        factor: see `falls`.
        epochs: here.
        batch: samples of a batch.
        by: who is asked: the model's ``"output"`` or the units, ``"local"``.
        error: the figure, test error in per cent.
        after: what the figure took.
        mark: ``"V"`` read in the authors' code or log, ``"F"`` found in a public text, ``"R"`` recalled, unconfirmed.
        source: where it stands.
        gpu: needs a CUDA device to be done in minutes.
        part: the data set here is only a part of it, so that the figures cannot be compared.
    """

    name: str
    data: str
    rule: str
    error: float
    after: str
    mark: str
    source: str
    options: dict[str, Any] = field(default_factory=dict)
    net: str = "dense"
    sizes: dict[str, Any] = field(default_factory=dict)
    init: str = "torch"
    layers: str = r"blocks\.\d+"
    scale: str = "standard"
    optimizer: tuple[str, dict[str, Any]] | None = None
    falls: tuple[float, ...] = ()
    factor: float = 0.25
    epochs: int = 10
    batch: int = 128
    by: str = "output"
    gpu: bool = False
    part: bool = False

    @property
    def band(self) -> tuple[float, float] | None:
        """Errors that count as a reproduction; None for figures that are recalled, or of other data.

        >>> by_name("predsim").band, by_name("drtp").band
        ((6.83, 10.25), None)
        """
        if self.mark == "R" or self.part:
            return None
        return round(self.error * (1 - TOLERANCE), 2), round(self.error * (1 + TOLERANCE), 2)


NOKLAND = "Nokland & Eidnes, Training Neural Networks with Local Error Signals (2019)"
WIDE = {"widths": (1024, 1024, 1024), "activation": "leaky_relu", "dropout": 0.1}
FALLS = (0.5, 0.75, 0.89, 0.94)
MLP: dict[str, Any] = {
    "data": "fashion_mnist",
    "sizes": WIDE,
    "falls": FALLS,
    "source": NOKLAND,
    "mark": "F",
    "after": "100 epochs",
}
VGG: dict[str, Any] = {
    "data": "fashion_mnist",
    "net": "vgg8b",
    "sizes": {"width": 1.0},
    "layers": r"features\.\d+|hidden",
    "gpu": True,
    "falls": FALLS,
    "epochs": 100,
    "after": "100 epochs",
    "mark": "F",
    "source": NOKLAND,
}
FORWARD: dict[str, Any] = {"data": "mnist", "rule": "forward_forward", "by": "local", "batch": 100, "mark": "F"}
ONE: dict[str, Any] = {"data": "mnist", "mark": "R", "after": "100 epochs", "scale": "unit"}

PUBLISHED = (
    Published(
        "forward_forward",
        error=3.60,
        after="30 epochs, 66 s on a laptop's CPU",
        **FORWARD,
        sizes={"widths": (500, 500), "norm": False},
        optimizer=("Adam", {"lr": 3e-3}),
        source="a public NumPy implementation of Hinton, The Forward-Forward Algorithm (2022)",
    ),
    Published("local_ce", rule="local_ce", error=8.60, **MLP),
    Published("predsim", rule="predsim", error=8.54, **MLP),
    Published(
        "mono_forward",
        "fashion_mnist",
        "local_ce",
        9.5,
        "long training",
        "F",
        "Mono-Forward (2025)",
        options={"bias": False},
        sizes={"widths": (1000, 1000), "norm": False},
        by="local",
    ),
    Published(
        "drtp",
        rule="drtp",
        error=1.9,
        **ONE,
        sizes={"widths": (1000,), "activation": "tanh", "norm": False},
        source="Frenkel et al., Learning without feedback (2021)",
    ),
    Published(
        "dfa",
        rule="dfa",
        error=1.3,
        **ONE,
        sizes={"widths": (1000,), "activation": "tanh", "norm": False},
        source="Nokland, Direct Feedback Alignment (2016)",
    ),
    Published(
        "pepita",
        rule="pepita",
        error=2.0,
        **ONE,
        batch=64,
        optimizer=("SGD", {"lr": 0.1, "momentum": 0.9}),
        init="he",
        sizes={"widths": (1000,), "norm": False, "dropout": 0.1, "bias": False},
        source="Dellaferrera & Kreiman, Error-driven Input Modulation (2022)",
    ),
    Published(
        "softhebb",
        "mnist",
        "softhebb",
        3.7,
        "1 epoch, 2000 neurons",
        "R",
        "Moraitis et al., SoftHebb (2022)",
        sizes={"widths": (2000,), "activation": "triangle", "norm": False, "bias": False},
        init="softhebb",
        batch=10,
    ),
    Published(
        "cafo",
        "cifar10",
        "cafo",
        34.86,
        "closed form, all of CIFAR-10",
        "V",
        "the authors' code of CaFo (2023)",
        net="random_blocks",
        sizes={"channels": (32, 128, 512)},
        by="local",
        epochs=1,
        part=True,
    ),
    Published("vgg8b_backprop", rule="backprop", error=4.53, **VGG),
    Published("vgg8b_local_ce", rule="local_ce", error=5.66, **VGG),
    Published("vgg8b_sim", rule="sim", error=5.12, **VGG),
    Published("vgg8b_predsim", rule="predsim", error=4.65, **VGG),
    Published(
        "forward_forward_3x1000",
        error=1.45,
        after="100 epochs",
        **FORWARD,
        gpu=True,
        epochs=100,
        sizes={"widths": (1000, 1000, 1000), "norm": False},
        optimizer=("SGD", {"lr": 1e-3, "momentum": 0.9, "weight_decay": 3e-4}),
        source="a public torch implementation of Hinton, The Forward-Forward Algorithm (2022)",
    ),
)


def by_name(name: str) -> Published:
    """The entry of this name.

    Raises:
        UnknownNameError: there is none; with near misses.
    """
    found = {entry.name: entry for entry in PUBLISHED}
    if name not in found:
        raise UnknownNameError("reproduce", f"no figure is called {name!r}", fix=did_you_mean(name, found))
    return found[name]
