"""What enters the first layer: formatters of the context and generators of the two streams."""

from ..functional import signals as functional  # noqa: F401
from .context import ClassContext as ClassContext
from .formatters import DistinctBatchLabels as DistinctBatchLabels
from .formatters import DistinctBatchLabelsOnehot as DistinctBatchLabelsOnehot
from .formatters import Formatter as Formatter
from .formatters import LabelNumberToOnehot as LabelNumberToOnehot
from .formatters import LabelVectorToNumber as LabelVectorToNumber
from .generators import FixedDrawContext as FixedDrawContext
from .generators import Generator as Generator
from .generators import ProjectionContext as ProjectionContext
from .generators import ProjectionContextInput as ProjectionContextInput
