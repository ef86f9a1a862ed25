"""Which layers are units, and which rule each one gets."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from ..errors import ArgumentError, CoverageError, UnknownNameError, did_you_mean
from ..rules import Rule, registry, resolve
from .tree import Tree

Layers = str | Iterable[str] | Callable[[str, nn.Module], bool] | None
AnyRule = str | Rule | type[Rule]
Assignment = AnyRule | Mapping[str, AnyRule]


@dataclass(frozen=True)
class Assigned:
    """One unit to be: the paths of its modules, run in this order, and its rule."""

    paths: tuple[str, ...]
    rule: Rule


def assign(
    model: nn.Module, rule: Assignment, layers: Layers = None, left_out: Iterable[str] = (), **options: object
) -> list[Assigned]:
    """Units of `model` in the order of its ``named_modules``, without the names that are `left_out`.

    Raises:
        UnknownNameError: a pattern or path that matches nothing.
        CoverageError: nested units, or a module that two patterns match.
    """
    tree = Tree(model)
    if isinstance(rule, Mapping):
        if layers is not None:
            raise ArgumentError("attach", "layers= beside a dict of patterns", fix="name the layers in the dict alone")
        chosen = _by_pattern(tree, rule, options)
    else:
        made = resolve(rule, **options)
        if layers is None:
            return [Assigned(group, made) for group in tree.children(set(left_out))]
        chosen = dict.fromkeys(_chosen(tree, layers), made)
    listed = layers is not None and not isinstance(layers, str) and not callable(layers)
    kept = {p: r for p, r in chosen.items() if p not in left_out}
    return [Assigned(group, kept[group[0]]) for group in tree.grouped(kept, listed)]


def in_blocks(units: list[Assigned], size: int) -> list[Assigned]:
    """Up to `size` neighbours of one rule and one parent as one unit.

    >>> rule = resolve("local_ce")
    >>> units = [Assigned((f"blocks.{i}",), rule) for i in range(3)] + [Assigned(("head",), rule)]
    >>> [unit.paths for unit in in_blocks(units, 2)]
    [('blocks.0', 'blocks.1'), ('blocks.2',), ('head',)]
    """
    blocks: list[list[Assigned]] = []
    for unit in units:
        last = blocks[-1] if blocks else []
        fits = 0 < len(last) < size and last[0].rule == unit.rule and _parent(last[0]) == _parent(unit)
        blocks[-1].append(unit) if fits else blocks.append([unit])
    return [Assigned(tuple(path for unit in block for path in unit.paths), block[0].rule) for block in blocks]


def _parent(unit: Assigned) -> str:
    return unit.paths[0].rpartition(".")[0]


def options_of(rule: Assignment) -> set[str]:
    """Names of the options that the rule, or one rule of a dict, has."""
    if isinstance(rule, Mapping):
        return {name for each in rule.values() for name in options_of(each)}
    cls = registry.get(rule) if isinstance(rule, str) else rule if isinstance(rule, type) else type(rule)
    return set(inspect.signature(cls).parameters) if cls is not None and issubclass(cls, Rule) else set()


def _by_pattern(tree: Tree, rules: Mapping[str, AnyRule], options: dict[str, object]) -> dict[str, Rule]:
    if not rules:
        example = r'{r"blocks\.\d+": "sigprop"}'
        raise ArgumentError(
            "attach", "the dict of patterns is empty", expected="at least one pattern", got=rules,
            fix=f"attach(model, {example})",
        )  # fmt: skip
    chosen: dict[str, Rule] = {}
    by: dict[str, str] = {}
    for pattern, rule in rules.items():
        made = resolve(rule, **{k: v for k, v in options.items() if k in options_of(rule)})
        for path in tree.match(pattern):
            if path in chosen:
                raise CoverageError(
                    f"layer {path!r}", "two patterns match it", got=f"{by[path]!r} and {pattern!r}",
                    fix="make the patterns disjoint",
                )  # fmt: skip
            chosen[path], by[path] = made, pattern
    return chosen


def _chosen(tree: Tree, layers: str | Iterable[str] | Callable[[str, nn.Module], bool]) -> list[str]:
    if isinstance(layers, str):
        return tree.match(layers)
    if callable(layers):
        paths = tree.outermost(layers)
        if not paths:
            raise UnknownNameError("attach", "layers= chose no module", fix=did_you_mean("", tree.modules))
        return paths
    if isinstance(layers, Mapping) or not isinstance(layers, Iterable):
        raise ArgumentError(
            "attach", "layers= is none of what it may be", got=repr(layers),
            expected="a regex, a list of paths, f(path, module) -> bool, or None",
            fix="a dict of patterns and rules takes the rule's place: attach(model, {pattern: rule})",
        )  # fmt: skip
    return [tree.find(path) for path in layers]


def named(units: Iterable[str], patterns: Iterable[str]) -> list[str]:
    r"""Names of units that are one of the patterns, or match it as a regular expression, in full.

    Raises:
        UnknownNameError: a pattern that matches none.
        ArgumentError: a pattern that is no regular expression.

    >>> named(["stem", "blocks.0", "blocks.1"], [r"blocks\.\d"])
    ['blocks.0', 'blocks.1']
    """
    units, found = list(units), []
    for pattern in patterns:
        try:
            matching = [n for n in units if n == pattern or re.fullmatch(pattern, n)]
        except (re.error, TypeError) as error:
            raise ArgumentError(
                "manager", "a pattern is no regular expression", expected="names of units, or patterns of them",
                got=f"{pattern!r}: {error}", fix="re.escape(name) for a name with special characters",
            ) from None  # fmt: skip
        if not matching:
            raise UnknownNameError("manager", f"no unit matches {pattern!r}", fix=did_you_mean(pattern, units))
        found += matching
    return found
