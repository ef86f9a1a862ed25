"""Propagators of signals: they take ``(x, context, context)`` and return the pair that enters the first layer."""

from .learn import Learn as Learn
from .learn import Loss as Loss
from .other import Fixed as Fixed
