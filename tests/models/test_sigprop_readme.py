"""The quick start of signal propagation, step by step, with a manager and without; channel counts as they must be."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim

import imprint as sigprop
from imprint.utils import shape_numel

num_classes, input_dim, hidden_ch = 4, 8, 6


def build_optimizer(module, lr=0.0004, weight_decay=0.0):
    p = list(module.parameters())
    if len(p) == 0:
        return None
    optimizer = optim.Adam(p, lr=lr, weight_decay=weight_decay)
    return optimizer


def build_signal():
    hidden_dim = input_dim
    input_shape = (num_classes,)
    output_shape = (hidden_ch, hidden_dim, hidden_dim)
    signal_target_module = nn.Sequential(
        nn.Linear(int(shape_numel(input_shape)), int(shape_numel(output_shape)), bias=False),
        nn.LayerNorm(shape_numel(output_shape)),
        nn.ReLU(),
    )
    signal_input_module = nn.Sequential(
        nn.Conv2d(3, output_shape[0], 3, 1, 1, bias=False), nn.BatchNorm2d(output_shape[0]), nn.ReLU()
    )
    sp_signal = sigprop.signals.ProjectionContextInput(
        signal_target_module, signal_input_module, input_shape, output_shape
    )
    return nn.Sequential(sigprop.signals.LabelNumberToOnehot(num_classes), sp_signal)


def build_layers():
    layer_1 = nn.Sequential(
        nn.Conv2d(hidden_ch, hidden_ch * 2, 3, 2, 1, bias=False), nn.BatchNorm2d(hidden_ch * 2), nn.ReLU()
    )
    layer_2 = nn.Sequential(
        nn.Conv2d(hidden_ch * 2, hidden_ch * 4, 3, 2, 1, bias=False), nn.BatchNorm2d(hidden_ch * 4), nn.ReLU()
    )
    features = hidden_ch * 4 * (input_dim // 2**2) ** 2
    layer_output = nn.Sequential(nn.Flatten(), nn.Linear(int(features), int(num_classes), bias=True))
    return layer_1, layer_2, layer_output


def with_manager(signal_fixed=False):
    signals = sigprop.propagators.signals
    sp_manager = sigprop.managers.Preset(
        sigprop.models.Forward,
        sigprop.propagators.Loss,
        signals.Fixed if signal_fixed else signals.Loss,
        build_optimizer,
    )
    sp_manager.config_propagator(loss=sigprop.loss.v9_input_target_max_all)
    options = {} if signal_fixed else {"loss": sigprop.loss.v9_input_target_max_all}
    sp_manager.set_signal(build_signal(), **options)
    layer_1, layer_2, layer_output = build_layers()
    layer_1 = sp_manager.add_propagator(layer_1)
    layer_2 = sp_manager.add_propagator(layer_2)
    layer_output = sp_manager.add_propagator(layer_output, sigprop.propagators.Identity)
    network = nn.Sequential(layer_1, layer_2, layer_output)
    return sp_manager.set_model(network)


def without_manager(signal_fixed=False):
    from imprint import propagators

    sp_signal = build_signal()
    if signal_fixed:
        sp_signal = propagators.signals.Fixed(sp_signal)
    else:
        sp_signal = sigprop.propagators.signals.Loss(
            sp_signal, optimizer=build_optimizer(sp_signal), loss=sigprop.loss.v9_input_target_max_all
        )
    layer_1, layer_2, layer_output = build_layers()
    layer_1 = propagators.Loss(layer_1, optimizer=build_optimizer(layer_1), loss=sigprop.loss.v9_input_target_max_all)
    layer_2 = propagators.Loss(layer_2, optimizer=build_optimizer(layer_2), loss=sigprop.loss.v9_input_target_max_all)
    layer_output = propagators.Identity(
        layer_output, optimizer=build_optimizer(layer_output), loss=sigprop.loss.v9_input_target_max_all
    )
    network = nn.Sequential(layer_1, layer_2, layer_output)
    return sigprop.models.Forward(network, sp_signal)


def loader(batches, seed):
    """Noisy pictures of four patterns; the last batch is ragged."""
    generator = torch.Generator().manual_seed(7)
    patterns = torch.randn(num_classes, 3, input_dim, input_dim, generator=generator)
    generator.manual_seed(seed)
    for i in range(batches):
        y = torch.randint(num_classes, (5 if i == batches - 1 else 16,), generator=generator)
        yield 1.5 * patterns[y] + torch.randn(len(y), 3, input_dim, input_dim, generator=generator), y


def train(model, train_loader):
    optimizer = build_optimizer(model)
    model.train()

    for _batch, (data, target) in enumerate(train_loader):
        output = model(data, target)

        loss = F.cross_entropy(output, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test(model, test_loader):
    model.eval()

    acc_sum = 0.0
    count = 0.0

    for _batch, (data, target) in enumerate(test_loader):
        output = model(data, None)

        pred = output.argmax(1)
        acc_mask = pred.eq(target)
        acc_sum += acc_mask.sum()
        count += acc_mask.size(0)

    return float(acc_sum / count)


test.__test__ = False


@pytest.mark.parametrize("signal_fixed", [False, True], ids=["learned signal", "fixed signal"])
def test_the_quick_start_learns_and_both_ways_of_it_are_bitwise_one(signal_fixed):
    made = []
    for build in (with_manager, without_manager):
        torch.manual_seed(0)
        model = build(signal_fixed)
        untrained, start = test(model, loader(4, 2)), {k: v.clone() for k, v in model.state_dict().items()}
        train(model, loader(150, 1))
        made.append(model)
        assert test(model, loader(4, 2)) > 0.95 > 0.6 > untrained
        for name, p in model.named_parameters():
            still = signal_fixed and name.startswith("signal.")
            assert torch.equal(p, start[name]) == still, name
    for (name, a), b in zip(made[0].state_dict().items(), made[1].state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("example", ["2: max rand", "4: top k with a monitor"])
def test_the_losses_of_the_examples_with_a_monitor_for_each_layer(example):
    torch.manual_seed(0)
    monitor_main = sigprop.monitors.Group()
    loss = sigprop.loss.v14_input_target_max_rand
    if example.startswith("4"):
        loss = sigprop.loss.v15_input_target_topk(topk=6)
    sp_manager = sigprop.managers.Preset(
        sigprop.models.Forward,
        sigprop.propagators.Loss,
        sigprop.propagators.signals.Loss,
        build_optimizer,
        sigprop.monitors.loss.LabelMetrics,
        monitor_main,
    )
    sp_manager.config_propagator(loss=loss)
    sp_manager.set_signal(build_signal(), loss=loss)
    layer_1, layer_2, layer_output = build_layers()
    network = nn.Sequential(
        sp_manager.add_propagator(layer_1),
        sp_manager.add_propagator(layer_2),
        sp_manager.add_propagator(layer_output, sigprop.propagators.Identity),
    )
    model = sp_manager.set_model(network)
    train(model, loader(150, 1))
    assert test(model, loader(4, 2)) > 0.95
    lines = monitor_main.metrics().splitlines()
    assert [line.split("]")[0] for line in lines] == ["[signal", "[0 Sequential", "[1 Sequential"]
    assert all(f"/{149 * 16 + 5})" in line and "Loss: " in line for line in lines)
    monitor_main.reset()
    assert "(0.0000, 0/0)" in monitor_main.metrics()


def test_every_name_of_the_document_is_there():
    names = """models.Forward models.Model models.LoopBack models.ForwardLoopBack signals.ProjectionContextInput
        signals.ProjectionContext signals.FixedDrawContext signals.LabelNumberToOnehot signals.DistinctBatchLabels
        signals.DistinctBatchLabelsOnehot signals.LabelVectorToNumber signals.Generator signals.Formatter
        propagators.signals.Loss propagators.signals.Fixed propagators.signals.Learn propagators.Loss propagators.Learn
        propagators.Fixed propagators.Identity propagators.Forward propagators.Propagator loss.Loss
        loss.v1_input_label_direct loss.v9_input_target_max_all loss.v14_input_target_max_rand
        loss.v15_input_target_topk managers.Preset monitors.Monitor monitors.Group monitors.loss.Loss
        monitors.loss.LabelMetrics functional.propagators.forward functional.signals.label_number_to_onehot
        signals.generators signals.formatters propagators.learn propagators.other models.model utils.shape_numel"""
    for name in names.split():
        found = sigprop
        for part in name.split("."):
            found = getattr(found, part)
        assert found is not None
