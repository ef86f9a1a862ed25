"""Every rule on the same net, data and budget: ``python -m imprint.compare``."""

from .comparison import compare_rules as compare_rules
from .contestants import Contestant as Contestant
from .contestants import DeepSupervision as DeepSupervision
from .contestants import contestants as contestants
from .nets import NETS as NETS
from .nets import Net as Net
from .rows import Row as Row
