"""A model as a tree of paths: what can be a unit, and which modules run as one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ..errors import ArgumentError, CoverageError, UnknownNameError, did_you_mean

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)


def parents(path: str) -> list[str]:
    """Paths of all modules above this one.

    >>> parents("a.b.c")
    ['a', 'a.b']
    """
    parts = path.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def runs(module: nn.Module) -> bool:
    """Has it a forward? ``nn.ModuleList`` and its like are never called."""
    return type(module).forward is not nn.Module.forward or "forward" in module.__dict__


def _free(module: nn.Module) -> bool:
    """Has it nothing to learn?"""
    return next(module.parameters(), None) is None


class Tree:
    """A model's modules by path; a module with several paths goes by its first.

    Attributes:
        modules: every module by every path.
        first: the path it goes by, of each path.
        places: in how many places each module stands, by id.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = {path: m for path, m in model.named_modules(remove_duplicate=False) if path}
        named: dict[int, str] = {}
        self.first = {path: path if _free(m) else named.setdefault(id(m), path) for path, m in self.modules.items()}
        self.places = Counter(id(child) for m in model.modules() for child in m._modules.values())

    def match(self, pattern: str) -> list[str]:
        """The outermost modules with a forward whose path the regex matches in full."""
        fits = compiled("layers=", pattern)
        found = self.outermost(lambda path, _: fits.fullmatch(path) is not None)
        if not found:
            raise UnknownNameError("attach", f"no layer matches {pattern!r}", fix=did_you_mean(pattern, self.modules))
        return found

    def outermost(self, choose: Callable[[str, nn.Module], bool]) -> list[str]:
        """Chosen modules with a forward that lie in no other chosen one."""
        paths = [path for path, m in self.modules.items() if runs(m) and choose(path, m)]
        above = set(paths)
        inner = {p for p in paths if any(q in above for q in parents(p))}
        return list(dict.fromkeys(self.first[p] for p in paths if p not in inner))

    def find(self, path: str) -> str:
        """One path of a list, checked."""
        if path not in self.modules:
            raise UnknownNameError("attach", f"no layer {path!r}", fix=did_you_mean(str(path), self.modules))
        module = self.modules[path]
        if not runs(module):
            raise CoverageError(
                f"layer {path!r}", f"it is an nn.{type(module).__name__}, which is never called itself",
                fix=f'name its items, one by one or by a regex: layers=r"{re.escape(path)}\\.[^.]+"',
            )  # fmt: skip
        return self.first[path]

    def children(self, left_out: set[str]) -> list[tuple[str, ...]]:
        """Direct children with parameters, containers opened.

        In a Sequential, what has no parameters, and normalisation, joins the unit before it.
        """
        groups: list[list[str]] = []
        taken: set[int] = set()

        def walk(module: nn.Module, prefix: str) -> list[str] | None:
            last: list[str] | None = None  # the unit that the next child would join
            joins = type(module) is nn.Sequential
            for name, child in module._modules.items():
                path = prefix + name
                if child is None:
                    continue
                if path in left_out or id(child) in taken:
                    last = None
                elif _free(child) and last is None:
                    pass
                elif last is not None and (_free(child) or (isinstance(child, NORMS) and self.places[id(child)] == 1)):
                    last.append(path)
                elif type(child) in CONTAINERS or not runs(child):
                    last = walk(child, path + ".")
                else:
                    taken.add(id(child))
                    groups.append([path])
                    last = groups[-1] if self.places[id(child)] == 1 else None
                if not joins:
                    last = None
            return last

        walk(self.model, "")
        if not groups:
            raise CoverageError(
                "attach", "the model has no child with parameters that could be a unit", got=type(self.model).__name__,
                fix="wrap it, nn.Sequential(model), or name layers=",
            )  # fmt: skip
        return [tuple(group) for group in groups]

    def grouped(self, chosen: Iterable[str], strict: bool) -> list[tuple[str, ...]]:
        """One group a unit: parameter-free modules join the chosen one before them in the same nn.Sequential.

        Nested modules are refused; with `strict`, so are parameter-free ones that join nothing.
        """
        chosen = set(chosen)
        ordered = [p for p in self.modules if p in chosen]
        for path in ordered:
            for outer in parents(path):
                if outer in chosen:
                    what = f"it lies inside unit {outer!r}"
                    raise CoverageError(f"unit {path!r}", what, fix="name only one of the two")
        groups: list[list[str]] = []
        for path in ordered:
            if not _free(self.modules[path]):
                groups.append([path])
            elif groups and self._follows(groups[-1][-1], path) and self.places[id(self.modules[groups[-1][0]])] == 1:
                groups[-1].append(path)
            elif strict:
                raise CoverageError(
                    f"layer {path!r}", "it has no parameters, and stands behind none of the units in an nn.Sequential",
                    fix="leave it out of layers=: it runs where it is",
                )  # fmt: skip
        if not groups:
            what = "none of the chosen layers has parameters"
            raise CoverageError("attach", what, got=ordered, fix="choose other layers=")
        return [tuple(group) for group in groups]

    def _follows(self, before: str, path: str) -> bool:
        parent, _, name = path.rpartition(".")
        sequential = self.modules[parent] if parent else self.model
        if before.rpartition(".")[0] != parent or type(sequential) is not nn.Sequential:
            return False
        siblings = list(sequential._modules)
        return siblings.index(name) == siblings.index(before.rpartition(".")[2]) + 1


def compiled(where: str, pattern: str) -> re.Pattern[str]:
    """A regular expression.

    Raises:
        ArgumentError: it is none.
    """
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ArgumentError(
            "attach", f"{where} {pattern!r} is not a regular expression", got=error,
            fix="escape what is meant literally: re.escape(name)",
        ) from None  # fmt: skip


def excluded(model: nn.Module, exclude: str | Iterable[str]) -> set[str]:
    """Names of modules and parameters that `exclude` leaves out, with all that lies below them.

    Raises:
        UnknownNameError: a pattern that matches none.
    """
    named = [*model.named_modules(remove_duplicate=False), *model.named_parameters(remove_duplicate=False)]
    names = list(dict.fromkeys(name for name, _ in named if name))
    hit: set[str] = set()
    for pattern in [exclude] if isinstance(exclude, str) else exclude:
        fits = compiled("exclude=", pattern)
        found = {n for n in names if fits.fullmatch(n)}
        if not found:
            what = f"exclude= {pattern!r} matches no layer or parameter"
            raise UnknownNameError("attach", what, fix=did_you_mean(pattern, names))
        hit |= found
    return {n for n in names if any(n == h or n.startswith(h + ".") for h in hit)}
