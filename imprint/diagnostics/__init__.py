"""Is it so? Proofs and comparisons that look at training without taking part in it."""

from .alignment import backprop_gradients as backprop_gradients
from .alignment import cosine as cosine
from .gradient_plot import plot_gradient_heatmap as plot_gradient_heatmap
from .gradient_summary import Gradient as Gradient
from .gradient_summary import GradientSummary as GradientSummary
from .gradient_watcher import GradientWatcher as GradientWatcher
from .isolation import audit_isolation as audit_isolation
from .isolation_report import Boundary as Boundary
from .isolation_report import IsolationReport as IsolationReport
from .isolation_report import Leak as Leak
from .plots import plot_run as plot_run
from .records import Record as Record
from .records import read_records as read_records
