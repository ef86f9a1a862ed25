"""Normalisation over a batch writes its running statistics, and its call in torch does not say so."""

from __future__ import annotations

import torch
from torch.fx import GraphModule

aten = torch.ops.aten


def declare_norms(module: GraphModule) -> int:
    """Put the call that names what it writes in place of the one that does not; the same bits. Says how often.

    Rewrites that go by what calls declare would otherwise drop running statistics, or read them too early. What cuDNN
    offers stays as it is.

    >>> from torch.fx.experimental.proxy_tensor import make_fx
    >>> norm = torch.nn.BatchNorm1d(2)
    >>> captured = make_fx(lambda x: norm(x))(torch.randn(3, 2))
    >>> declare_norms(captured), declare_norms(captured)
    (1, 0)
    """
    found = 0
    for node in module.graph.nodes:
        if node.target is aten.native_batch_norm.default and node.args[5] and None not in node.args[3:5]:
            node.target = aten._native_batch_norm_legit.default
            found += 1
    module.recompile()
    return found
