"""Local losses of six arguments, ``(sp_learn, h1, t1, h0, t0, y_onehot) -> scalar``."""

from .hebbian import hebbian as hebbian
from .input_label import v1_input_label_direct as v1_input_label_direct
from .input_target import v9_input_target_max_all as v9_input_target_max_all
from .input_target import v14_input_target_max_rand as v14_input_target_max_rand
from .input_target import v15_input_target_topk as v15_input_target_topk
from .loss import Configured as Configured
from .loss import Loss as Loss
from .loss import configurable as configurable
from .loss import option as option
