"""What is wanted: local losses, and what targets mean."""

from .contrast import Contrast as Contrast
from .feedback import TargetFeedback as TargetFeedback
from .goodness import Goodness as Goodness
from .goodness import goodness as goodness
from .heads import Head as Head
from .hits import hits as hits
from .labels import Labels as Labels
from .objective import Objective as Objective
from .objective import Spec as Spec
from .objective import Target as Target
from .objective import View as View
from .similarity import Mix as Mix
from .similarity import SimilarityMatching as SimilarityMatching
