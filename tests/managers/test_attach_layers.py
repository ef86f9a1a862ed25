"""Which layers become units, by regex, list, callable, dict or default; what is refused, and how it is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import imprint
from imprint.errors import ArgumentError, CoverageError, DtypeError, StateError, UnknownNameError

K, B = 3, 4


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3)])
        self.act = nn.ReLU()
        self.head = nn.Linear(6, K)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.act(x))


def units(model: nn.Module, rule: Any = "local_ce", **options: Any) -> dict[str, tuple[str, ...]]:
    manager = imprint.attach(model, rule, **options)
    return {name: tuple(agent.unit.names) for name, agent in manager.units.items()}


def test_none_is_the_children_with_parameters_containers_opened() -> None:
    found = units(Net())
    assert found == {
        "stem.0": ("stem.0", "stem.1"), **{f"blocks.{i}.0": (f"blocks.{i}.0", f"blocks.{i}.1") for i in range(3)},
        "head": ("head",),
    }  # fmt: skip


def test_a_regex_matches_in_full_and_the_outermost_wins() -> None:
    assert list(units(Net(), layers=r"stem|blocks\.\d")) == ["stem", "blocks.0", "blocks.1", "blocks.2"]
    assert list(units(Net(), layers=r"blocks\.\d.*")) == ["blocks.0", "blocks.1", "blocks.2"]
    assert list(units(Net(), layers=r"blocks.*")) == [
        "blocks.0",
        "blocks.1",
        "blocks.2",
    ]  # a ModuleList is never called
    assert list(units(Net(), layers=r".*\.0")) == ["stem.0", "blocks.0", "blocks.1.0", "blocks.2.0"]


def test_a_list_is_taken_as_it_is() -> None:
    assert list(units(Net(), layers=["head", "blocks.1"])) == ["blocks.1", "head"]
    assert list(units(Net(), layers=("blocks.1", "blocks.1"))) == ["blocks.1"]
    assert units(Net(), layers=["stem.0", "stem.1", "head"]) == {"stem.0": ("stem.0", "stem.1"), "head": ("head",)}
    with pytest.raises(CoverageError, match=r"unit 'stem\.0'[\s\S]*inside unit 'stem'"):
        units(Net(), layers=["stem", "stem.0"])
    with pytest.raises(UnknownNameError, match=r"no layer 'haed'[\s\S]*did you mean 'head'"):
        units(Net(), layers=["haed"])
    with pytest.raises(
        CoverageError, match=r"layer 'blocks'[\s\S]*ModuleList[\s\S]*never called[\s\S]*r\"blocks\\\.\["
    ):
        units(Net(), layers=["blocks"])
    with pytest.raises(CoverageError, match=r"layer 'act'[\s\S]*no parameters"):
        units(Net(), layers=["head", "act"])
    with pytest.raises(CoverageError, match="layers="):
        units(Net(), layers=[])


def test_a_callable_chooses() -> None:
    assert list(units(Net(), layers=lambda path, m: isinstance(m, nn.Sequential))) == [
        "stem",
        *(f"blocks.{i}" for i in range(3)),
    ]
    assert len(units(Net(), layers=lambda path, m: True)) == 5
    with pytest.raises(UnknownNameError, match="chose no module"):
        units(Net(), layers=lambda path, m: False)


def test_patterns_that_match_nothing_are_errors_with_near_misses() -> None:
    with pytest.raises(UnknownNameError, match=r"no layer matches 'heads'[\s\S]*did you mean 'head'"):
        units(Net(), layers="heads")
    with pytest.raises(ArgumentError, match=r"'blocks\.\('[\s\S]*regular expression"):
        units(Net(), layers="blocks.(")
    with pytest.raises(UnknownNameError, match=r"exclude=[\s\S]*'haed'[\s\S]*did you mean 'head'"):
        units(Net(), exclude="haed")
    with pytest.raises(ArgumentError, match=r"exclude=[\s\S]*regular expression"):
        units(Net(), exclude="blocks.(")
    with pytest.raises(ArgumentError, match=r"layers="):
        units(Net(), layers=3)


def test_a_dict_assigns_rules_by_pattern() -> None:
    model = Net()
    manager = imprint.attach(
        model, {r"stem": imprint.Frozen(), r"blocks\.\d+": "sigprop", r"head": "local_ce"}, num_classes=K
    )
    assert {n: a.rule.name for n, a in manager.units.items()} == {
        "stem": "frozen", "blocks.0": "sigprop", "blocks.1": "sigprop", "blocks.2": "sigprop", "head": "local_ce"
    }  # fmt: skip
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for _ in range(2):
        manager.step(torch.randn(B, 4), torch.arange(B) % K)
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {k for k in before if not k.startswith("stem")}


def test_a_dict_that_contradicts_itself() -> None:
    with pytest.raises(CoverageError, match=r"layer 'blocks\.1'[\s\S]*'blocks.\*'[\s\S]*'blocks\.\[12\]'"):
        units(Net(), {r"blocks.*": "sigprop", r"blocks.[12]": "local_ce"})
    with pytest.raises(CoverageError, match=r"unit 'stem\.0'[\s\S]*inside unit 'stem'"):
        units(Net(), {"stem": "sigprop", r"stem\.0": "local_ce"})
    with pytest.raises(ArgumentError, match="layers= beside a dict"):
        units(Net(), {"stem": "sigprop"}, layers="stem")
    with pytest.raises(UnknownNameError, match=r"unknown rule 'sigpop'[\s\S]*did you mean 'sigprop'"):
        units(Net(), {"stem": "sigpop"})
    with pytest.raises(ArgumentError, match="empty"):
        units(Net(), {})


def test_unknown_rules_and_options_name_near_misses() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown rule 'sigpop'[\s\S]*did you mean 'sigprop'"):
        units(Net(), "sigpop")
    with pytest.raises(UnknownNameError, match=r"'temprature'[\s\S]*did you mean 'temperature'"):
        units(Net(), "sigprop", temprature=0.2)
    with pytest.raises(UnknownNameError, match=r"'optimzer'[\s\S]*did you mean 'optimizer'"):
        units(Net(), "sigprop", optimzer=None)
    with pytest.raises(UnknownNameError, match=r"'optimzer'[\s\S]*did you mean 'optimizer'"):
        units(Net(), imprint.rules.SigProp(), optimzer=None)
    with pytest.raises(ArgumentError, match=r"already made[\s\S]*SigProp\(temperature=…\)"):
        units(Net(), imprint.rules.SigProp(), temperature=0.2)
    with pytest.raises(UnknownNameError, match=r"'lss'[\s\S]*did you mean 'loss'"):
        units(Net(), monitors=["lss"])
    with pytest.raises(ArgumentError, match="not a rule"):
        units(Net(), 3)
    with pytest.raises(ArgumentError, match=r"'Needy'[\s\S]*width"):

        class Needy(imprint.Rule):
            def __init__(self, width: int) -> None:
                self.width = width

        units(Net(), Needy)


def test_options_reach_the_rules_of_a_dict_that_have_them() -> None:
    manager = imprint.attach(
        Net(), {"stem": "sigprop", "head": "local_ce", r"blocks\.\d": imprint.Frozen()}, temperature=0.5
    )
    assert manager.units["stem"].rule.temperature == 0.5
    with pytest.raises(UnknownNameError, match=r"'temprature'[\s\S]*did you mean 'temperature'"):
        units(Net(), {"stem": "sigprop", "head": "local_ce"}, temprature=0.5)


def test_parameter_free_children_join_the_unit_before_them() -> None:
    act = nn.ReLU()
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), act, nn.Sequential(nn.MaxPool2d(2), nn.Dropout(0.0))),
        nn.Sequential(nn.Conv2d(2, 3, 2), act),
        nn.Flatten(), nn.Linear(12, K),
    )  # fmt: skip
    assert units(model) == {
        "0.0": ("0.0", "0.1", "0.2", "0.3"), "1.0": ("1.0", "1.1", "2"), "3": ("3",),
    }  # fmt: skip


def test_nothing_joins_across_a_layer_that_is_left_out() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6)), nn.ReLU(), nn.Linear(6, K))

    assert units(make(), exclude=r"0\.1") == {"0.0": ("0.0",), "2": ("2",)}
    model, plain = make(), make()
    plain.load_state_dict(model.state_dict())
    manager = imprint.attach(model, "local_ce", exclude=r"0\.1")
    x = torch.randn(B, 4)
    assert torch.equal(manager.step(x, torch.arange(B) % K), plain(x))


def test_joined_layers_must_follow_each_other_in_the_forward_too() -> None:
    """The children of a model that is no Sequential are in the order they were made, not in that of its forward."""

    class Tricky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.pool, self.fc2 = nn.Linear(4, 6), nn.AvgPool1d(2), nn.Linear(3, K)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(self.pool(torch.relu(self.fc1(x))))

    model, plain = Tricky(), Tricky()
    plain.load_state_dict(model.state_dict())
    manager = imprint.attach(model, "local_ce", layers=r"fc1|pool|fc2")
    assert {n: tuple(a.unit.names) for n, a in manager.units.items()} == {"fc1": ("fc1",), "fc2": ("fc2",)}
    x = torch.randn(B, 4)
    assert torch.equal(manager.step(x, torch.arange(B) % K), plain(x))

    class Reader(nn.Module):
        """Reads what stands between the layers of a Sequential."""

        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Linear(4, 6), nn.AvgPool1d(2))
            self.head = nn.Linear(9, K)

        def forward(self, x: Tensor) -> Tensor:
            h = self.features[0](x)
            return self.head(torch.cat([h, self.features[1](h + 1)], 1))

    with pytest.raises(CoverageError, match=r"unit 'features\.0'[\s\S]*'features\.1'[\s\S]*layers=\['features\.0'"):
        imprint.attach(Reader(), "local_ce").step(x, torch.arange(B) % K)
    imprint.attach(Reader(), "local_ce", layers=["features.0", "head"]).step(x, torch.arange(B) % K)


def test_what_is_written_into_before_a_joined_layer_is_not_what_the_unit_emitted() -> None:
    """The same tensor, with other numbers: the joined layer's part of it is not done."""

    class Writer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Linear(4, 6), nn.AvgPool1d(2))
            self.head = nn.Linear(3, K)
            self.writes = True

        def forward(self, x: Tensor) -> Tensor:
            h = self.features[0](x)
            if self.writes:
                h.add_(1)
            return self.head(self.features[1](h))

    x, y = torch.randn(B, 4), torch.arange(B) % K
    with pytest.raises((CoverageError, StateError)):
        imprint.attach(Writer(), "local_ce").step(x, y)
    model = Writer()
    model.writes = False
    imprint.attach(model, "local_ce").step(x, y)


def test_a_container_of_parameters_is_no_unit() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shifts = nn.ParameterList([nn.Parameter(torch.zeros(6))])
            self.inner, self.head = nn.Linear(4, 6), nn.Linear(6, K)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.inner(x) + self.shifts[0])

    manager = imprint.attach(Model(), "local_ce", layers=["inner"])
    manager.step(torch.randn(B, 4), torch.arange(B) % K)
    assert manager.bound["task"] == ("shifts.0", "head.weight", "head.bias")
    assert list(units(Model())) == ["inner", "head"]


class Weird(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.fc2(torch.tanh(self.fc1(x)))))


def test_weights_in_two_units_name_both() -> None:
    model = Weird()
    model.fc2.weight = model.fc1.weight
    with pytest.raises(CoverageError, match=r"'fc2\.weight'[\s\S]*'fc1'[\s\S]*'fc1\.weight'[\s\S]*'fc2'"):
        imprint.attach(model, "local_ce")
    imprint.attach(model, "local_ce", layers=["head"], exclude="fc1|fc2").step(torch.randn(B, 4), torch.arange(B) % K)
    model.detach = None


def test_a_unit_that_is_never_called() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.self_attn, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, K)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.self_attn(x, x, x, need_weights=False)[0].mean(1))

    model = Attention()
    manager = imprint.attach(model, "local_ce", layers=["self_attn.out_proj", "head"])
    with pytest.raises(CoverageError, match=r"unit 'self_attn\.out_proj'[\s\S]*never calls it[\s\S]*'self_attn'"):
        manager.step(torch.randn(B, 5, 4), torch.arange(B) % K)


def test_weights_read_past_their_unit() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mid = nn.Embedding(7, 4), nn.Linear(4, 4)

        def forward(self, ids: Tensor) -> Tensor:
            return self.mid(self.embed(ids)).mean(1) @ self.embed.weight.T

    manager = imprint.attach(Tied(), "local_ce", num_classes=7)
    with pytest.raises(CoverageError, match=r"unit 'embed'[\s\S]*'embed\.weight'[\s\S]*outside"):
        manager.step(torch.randint(7, (B, 5)), torch.arange(B) % 7)
    model = Tied()
    manager = imprint.attach(model, "local_ce", num_classes=7, layers=["mid"])
    manager.step(torch.randint(7, (B, 5)), torch.arange(B) % 7)
    assert manager.bound["task"] == ("embed.weight",)


def test_models_that_cannot_be_attached_say_why() -> None:
    with pytest.raises(ArgumentError, match="not a torch model"):
        imprint.attach(3, "local_ce")  # type: ignore[arg-type]
    with pytest.raises(CoverageError, match=r"no child with parameters[\s\S]*nn\.Sequential\(model\)"):
        imprint.attach(nn.Linear(2, 2), "local_ce")
    with pytest.raises(CoverageError, match=r"lazy[\s\S]*'1'"):
        imprint.attach(nn.Sequential(nn.Linear(2, 2), nn.LazyBatchNorm1d(affine=False)), "local_ce")
    with pytest.raises(CoverageError, match="lazy"):
        imprint.attach(nn.Sequential(nn.LazyLinear(2)), "local_ce")
    model = Net()
    imprint.attach(model, "local_ce")
    with pytest.raises(StateError, match=r"attached already[\s\S]*detach"):
        imprint.attach(model, "local_ce")
    with pytest.raises(StateError, match="attached already"):
        imprint.attach(nn.Sequential(model), "local_ce")
    patched = Net()
    patched.head.forward = lambda x: x[:, :K]  # type: ignore[method-assign]
    with pytest.raises(ArgumentError, match=r"layer 'head'[\s\S]*forward[\s\S]*patched"):
        imprint.attach(patched, "local_ce")


def test_wrapped_models_are_refused_with_the_reason() -> None:
    class Wrapped(nn.parallel.DistributedDataParallel):
        def __init__(self, module: nn.Module) -> None:
            nn.Module.__init__(self)
            self.module = module

    with pytest.raises(ArgumentError, match=r"DistributedDataParallel[\s\S]*waits for gradients[\s\S]*model\.module"):
        imprint.attach(Wrapped(Net()), "local_ce")
    with pytest.raises(ArgumentError, match=r"DataParallel[\s\S]*model\.module"):
        imprint.attach(nn.DataParallel(Net()), "local_ce")
    with pytest.raises(ArgumentError, match=r"OptimizedModule[\s\S]*torch\.compile"):
        imprint.attach(torch.compile(Net(), backend="eager"), "local_ce")
    compiled = Net()
    compiled.compile(backend="eager")
    with pytest.raises(ArgumentError, match=r"compile"):
        imprint.attach(compiled, "local_ce")
    compiled = Net()
    compiled.blocks[1].compile(backend="eager")
    with pytest.raises(ArgumentError, match=r"'blocks\.1'[\s\S]*compile"):
        imprint.attach(compiled, "local_ce")
    compiled = Net()
    compiled.blocks[1] = torch.compile(compiled.blocks[1], backend="eager")
    with pytest.raises(ArgumentError, match=r"'blocks\.1'[\s\S]*compile"):
        imprint.attach(compiled, "local_ce", layers=r"blocks\.\d")


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_scripted_models_are_refused() -> None:
    with pytest.raises(ArgumentError, match="ScriptModule"):
        imprint.attach(torch.jit.script(nn.Sequential(nn.Linear(2, 2))), "local_ce")


def test_options_out_of_range() -> None:
    for options in ({"accumulate": 0}, {"grad_clip": 0.0}, {"num_classes": 0}, {"num_classes": 2.5}):
        with pytest.raises(ArgumentError, match=next(iter(options))):
            imprint.attach(Net(), "local_ce", **options)
    for options in ({"grad_clip": "a"}, {"accumulate": True}, {"num_classes": True}, {"k": 2.5}, {"temperature": 0.0}):
        with pytest.raises(ArgumentError, match=rf"{next(iter(options))}[\s\S]*got: +'?{next(iter(options.values()))}"):
            imprint.attach(Net(), "sigprop", **{"num_classes": K} | options)
    for name in ("optimizer", "scheduler", "task_loss"):
        with pytest.raises(ArgumentError, match=rf"{name}= is not callable[\s\S]*'adam'[\s\S]*fix: +{name}=lambda"):
            imprint.attach(Net(), "local_ce", **{name: "adam"})
    with pytest.raises(ArgumentError, match=r"signal= is no module[\s\S]*nn\.Linear"):
        imprint.attach(Net(), "sigprop", signal=3)
    with pytest.raises(ArgumentError, match=r"^ArgumentError: contrast: unknown kind\.\n  expected: v1 \| v9"):
        imprint.attach(Net(), "sigprop", loss="v2")
    with pytest.raises(ArgumentError, match="contradicts"):
        imprint.attach(Net(), "local_ce", num_classes=3, labels=imprint.Labels(4))
    with pytest.raises(ArgumentError, match=r"signal= and context_at=[\s\S]*sigprop"):
        imprint.attach(Net(), "local_ce", signal=nn.Linear(3, 4))
    with pytest.raises(ArgumentError, match="different context streams"):
        imprint.attach(Net(), {"stem": "sigprop", "head": "forward_forward"}, num_classes=K)
    with pytest.raises(ArgumentError, match=r"different context streams[\s\S]*same learned="):
        imprint.attach(Net(), {"stem": imprint.rules.SigProp(learned=True), "head": "sigprop"}, num_classes=K)
    with pytest.raises(ArgumentError, match="learned context starts"):
        imprint.attach(Net(), "sigprop", learned=True, context_at="act")


@pytest.mark.parametrize(
    ("rule", "options", "match"),
    [
        ("local_ce", {"labels": 3}, r"labels= is no imprint\.Labels"),
        ("local_ce", {"monitors": None}, r"monitors[\s\S]*fix: +monitors=\(\)"),
        ("local_ce", {"monitors": 3}, "monitors"),
        ("local_ce", {"pool": 3}, "pool is not callable"),
        ("local_ce", {"limit": -1}, "limit must be a whole number"),
        ("local_ce", {"limit": 0}, "limit must be a whole number"),
        ("predsim", {"limit": 2.5}, "limit must be a whole number"),
        ("predsim", {"beta": "a"}, "beta is a share"),
        ("sigprop", {"temperature": "a"}, "temperature must be positive"),
        ("forward_forward", {"threshold": "a"}, "threshold is no number"),
    ],
)
def test_options_of_another_kind_are_refused_by_attach(rule: str, options: dict[str, Any], match: str) -> None:
    model = Net()
    with pytest.raises(ArgumentError, match=match):
        imprint.attach(model, rule, **{"num_classes": K} | options)
    assert type(model) is Net


def test_what_a_manager_is_given_later_is_refused_alike() -> None:
    manager = imprint.attach(Net(), "local_ce", num_classes=K)
    for pattern in ("(", 3):
        for call in (manager.freeze, manager.unfreeze):
            with pytest.raises(ArgumentError, match="no regular expression"):
                call(pattern)
    with pytest.raises(DtypeError, match=r"it is a list[\s\S]*fix: +tuple\(x\)"):
        manager.step([torch.randn(2, 4)], torch.tensor([0, 1]))
    without = imprint.attach(Net(), "local_ce", num_classes=K, scheduler=lambda optimizer: None)
    with pytest.raises(ArgumentError, match=r"scheduler= of unit[\s\S]*got: +None"):
        without.step(torch.randn(2, 4), torch.tensor([0, 1]))
    assert without.bound is None and without.steps == 0


def test_a_refused_attach_leaves_the_model_plain() -> None:
    model = Net()
    for options in ({"context_at": "nowhere"}, {"example": torch.randn(2, 9)}, {"example": "x"}):
        with pytest.raises((ValueError, KeyError, TypeError, RuntimeError)):
            imprint.attach(model, "sigprop", num_classes=K, **options)
        assert type(model.stem[0]) is nn.Linear and all("_imprint_agent" not in m.__dict__ for m in model.modules())
