"""What is wanted: local losses, and what targets mean."""

from .container import Objectives as Objectives
from .container import ParameterTerm as ParameterTerm
from .container import Term as Term
from .contrast import Contrast as Contrast
from .declared import CrossEntropy as CrossEntropy
from .declared import StateActivity as StateActivity
from .declared import row_mean as row_mean
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
from .targets import BatchKey as BatchKey
from .targets import PortDrive as PortDrive
from .targets import PortOutput as PortOutput
from .targets import ShiftedInput as ShiftedInput
from .targets import Targets as Targets
from .targets import TargetSpec as TargetSpec
