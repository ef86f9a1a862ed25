"""Generators: the two streams that enter the first layer, made from data and context."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..errors import ArgumentError
from ..functional import digit_glyphs
from ..functional import signals as F
from ..utils import shape_numel

Pair = tuple[Tensor, Tensor | None]
Signal = tuple[Tensor, Tensor | None, Tensor, Tensor | None]


class Generator(nn.Module):
    """Makes the streams: subclass it and write ``forward(input) -> (h1, t1, h0, t0)`` for ``input = (h0, t0)``.

    h1, t1 enter the first layer and have the same shape but for the number of rows; h0, t0 are what the signal's loss
    sees as its inputs. Without a context, t0 is None and so is t1.
    """


class ProjectionContext(Generator):
    """The data as it is; the context through a module, into the shape of the data.

    Args:
        module: maps ``[R, numel(input_shape)]`` to ``[R, numel(output_shape)]``.
        input_shape: of one context row: ``(num_classes,)`` for one-hot labels, ``(1,)`` for a number to regress.
        output_shape: of one sample of the data.
        fixed: freeze the module's parameters.

    Shape: h0 ``[B, *output_shape]``; t0 ``[R, *input_shape]``, or ``[R]`` for ``(1,)``; t1 ``[R, *output_shape]``.

    Raises:
        ShapeError: the context or its projection has another size.
        DtypeError: the context is not floating.

    Reference: Kohan, Rietman & Siegelmann, Signal Propagation (2022).
    Differs from the paper: nothing.

    >>> import torch
    >>> signal = ProjectionContext(nn.Linear(3, 4, bias=False), (3,), (1, 2, 2), fixed=True)
    >>> signal((torch.zeros(5, 1, 2, 2), torch.eye(3)))[1].shape, signal((torch.zeros(5, 1, 2, 2), None))[1]
    (torch.Size([3, 1, 2, 2]), None)
    """

    def __init__(
        self, module: nn.Module, input_shape: Sequence[int], output_shape: Sequence[int], fixed: bool = False
    ) -> None:
        super().__init__()
        self.input_shape, self.output_shape = _shape(input_shape), _shape(output_shape)
        self.module = module
        if fixed:
            self.module.requires_grad_(False)

    def forward(self, input: Pair) -> Signal:
        """``(h0, t1, h0, t0)``."""
        return F.projection_context(input, self.module, self.input_shape, self.output_shape)

    def extra_repr(self) -> str:
        """The two shapes."""
        return f"{self.input_shape} -> {self.output_shape}"


class ProjectionContextInput(Generator):
    """Data and context each through a module of its own, into one shape.

    Args:
        module_context: maps ``[R, numel(input_shape)]`` to ``[R, numel(output_shape)]``.
        module_input: maps the data to ``[B, *output_shape]``.
        input_shape: of one context row.
        output_shape: of one row of both streams.
        fixed: freeze both modules' parameters.

    Shape: h0 ``[B, ...]``; t0 ``[R, *input_shape]``; h1 ``[B, *output_shape]``; t1 ``[R, *output_shape]``.

    Raises:
        ShapeError: the context or a projection has another size.
        DtypeError: the context is not floating.

    Reference: Kohan, Rietman & Siegelmann, Signal Propagation (2022).
    Differs from the paper: nothing.

    >>> import torch
    >>> signal = ProjectionContextInput(nn.Linear(10, 8), nn.Linear(6, 8), (10,), (8,))
    >>> h1, t1, h0, t0 = signal((torch.zeros(5, 6), torch.eye(10)))
    >>> h1.shape, t1.shape
    (torch.Size([5, 8]), torch.Size([10, 8]))
    """

    def __init__(
        self, module_context: nn.Module, module_input: nn.Module, input_shape: Sequence[int],
        output_shape: Sequence[int], fixed: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.input_shape, self.output_shape = _shape(input_shape), _shape(output_shape)
        self.module_context = module_context
        self.module_input = module_input
        if fixed:
            self.requires_grad_(False)

    def forward(self, input: Pair) -> Signal:
        """``(h1, t1, h0, t0)``."""
        return F.projection_context_input(
            input, self.module_context, self.module_input, self.input_shape, self.output_shape
        )

    def extra_repr(self) -> str:
        """The two shapes."""
        return f"{self.input_shape} -> {self.output_shape}"


class FixedDrawContext(Generator):
    """The data as it is; the context's number drawn as a picture of its digits, without parameters.

    Args:
        places: most digits a number has.

    Shape: h0 ``[B, C, H, W]``; t0 ``[R]`` or ``[R, 1]`` whole numbers; t1 ``[R, C, H, W]`` in −1 … 1.

    Raises:
        ShapeError: the digits do not fit on the pictures.
        LabelError: a number is negative or has too many digits.

    Reference: Kohan, Rietman & Siegelmann, Signal Propagation (2022).
    Differs from the paper: seven-segment digits.

    >>> import torch
    >>> signal = FixedDrawContext(places=2)
    >>> signal((torch.zeros(3, 1, 16, 16), torch.tensor([7, 42, 10])))[1].shape
    torch.Size([3, 1, 16, 16])
    """

    glyphs: Tensor

    def __init__(self, places: int) -> None:
        super().__init__()
        if isinstance(places, bool) or not isinstance(places, int) or places < 1:
            raise ArgumentError(
                "FixedDrawContext", "places must be a positive integer", got=repr(places), fix="places=1"
            )
        self.places = places
        self.register_buffer("glyphs", digit_glyphs(), persistent=False)

    def forward(self, input: Pair) -> Signal:
        """``(h0, pictures, h0, t0)``."""
        return F.fixed_draw_context(input, self.places, self.glyphs)

    def extra_repr(self) -> str:
        """The number of places."""
        return f"places={self.places}"


def _shape(shape: Sequence[int]) -> tuple[int, ...]:
    shape_numel(shape)  # refuses negative sizes
    return tuple(int(d) for d in shape)
