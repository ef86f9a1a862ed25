"""The code of the two documents that describe the graph: what users are told to write, section by section."""

from __future__ import annotations

GUIDE = {
    "1.1": """
import torch
import imprint

clock = imprint.Clock()
g = imprint.Graph(clock=clock)
""",
    "1.2": """
Auto = imprint.Auto

enc = imprint.Module(
    name="enc",
    proto=imprint.protos.GRUStack(hidden=256, layers=2, layernorm=True),
    ports=imprint.Ports(
        in_default=Auto,
        out_default=256,
    ),
)
""",
    "1.2 ports": """
enc_in  = enc["in"]
enc_out = enc["out"]
""",
    "1.2 define": """
enc.define_port(
    "out_deep",
    nodes=imprint.Nodes.of(layer=2, slice=slice(0, 192)),
)

enc.define_port(
    "out_wide",
    nodes=imprint.Nodes.of(layer=1, indices=range(0, 384, 2)),
)
""",
    "1.3": """
src = imprint.Source(batch_key="x")
""",
    "1.4": """
rate = imprint.Rate(inner_steps=4, emit_every=2)
""",
    "1.4 modules": """
enc_hi = imprint.Module(
    name="enc_hi",
    proto=imprint.protos.GRUStack(hidden=192, layers=1),
    ports=imprint.Ports(in_default=Auto, out_default=192),
    schedule=imprint.Rate(inner_steps=1, emit_every=1),
)

enc_lo = imprint.Module(
    name="enc_lo",
    proto=imprint.protos.GRUStack(hidden=192, layers=2),
    ports=imprint.Ports(in_default=Auto, out_default=192),
    schedule=imprint.Rate(inner_steps=4, emit_every=2),
)
""",
    "1.5": """
g.add(src, enc_hi)
g.connect(src["out"], enc_hi["in"])
""",
    "1.5 constrain": """
edge = g.connect(enc_hi["out"], enc_lo["in"], name="hi→lo")
edge.constrain(mask=imprint.masks.band(bandwidth=32), max_abs=0.3)
""",
    "1.6": """
enc.objectives.activity_l2(on="out", weight=1e-4)
""",
    "1.6 targets": """
from imprint import Targets

Targets.batch_key("y")

Targets.shifted_input(src, shift=+1)

Targets.port_drive(enc, port="in")
""",
    "1.6 loss": """
loss = g.loss()
""",
    "1.7": """
m.state.input_drive[port_name]
m.state.output[port_name]
m.state.recurrent
""",
    "1.8": """
from imprint import record

with record(g) as trace:
    out = g.rollout(batch)

plan = trace.compile(
    backend="cuda_graph",
    fuse_projections=True,
    fuse_port_sums=True,
)

out = plan.rollout(batch2)
loss = plan.loss()
loss.backward()
""",
    "2": """
import torch
import imprint

Auto = imprint.Auto

clock = imprint.Clock()
g = imprint.Graph(clock=clock)

src = imprint.Source("x")

enc = imprint.Module(
    name="enc",
    proto=imprint.protos.GRUStack(hidden=256, layers=2, layernorm=True),
    ports=imprint.Ports(in_default=Auto, out_default=256),
)

mlp = imprint.Module(
    name="mlp",
    proto=imprint.protos.MLP(widths=[256, 512], act="gelu"),
    ports=imprint.Ports(in_default=256, out_default=512),
)

head = imprint.Module(
    name="head",
    proto=imprint.protos.MLP(widths=[512, Auto]),
    ports=imprint.Ports(in_default=512, out_default=Auto),
)

g.add(src, enc, mlp, head)

g.connect(src["out"], enc["in"])
g.connect(enc["out"], mlp["in"])
g.connect(mlp["out"], head["in"])

enc.objectives.activity_l2(on="out", weight=1e-4)
head.objectives.ce(on="out", target=imprint.Targets.batch_key("y"))

enc.set_input_mask(port="in", mask=imprint.masks.keep_every_kth(k=2), persist=True)
enc.limit_weights(port="in", max_abs=0.25)

batch = {
    "x": torch.randn(32, 200, 128),
    "y": torch.randint(0, 1000, (32,))
}

g.bind(batch)

out = g.rollout(batch)
loss = g.loss()
loss.backward()
""",
    "3": """
clock = imprint.Clock()
g = imprint.Graph(clock=clock)

src = imprint.Source("x")

enc_hi = imprint.Module(
    name="enc_hi",
    proto=imprint.protos.GRUStack(hidden=192, layers=1),
    ports=imprint.Ports(in_default=Auto, out_default=192),
    schedule=imprint.Rate(inner_steps=1, emit_every=1),
)

enc_lo = imprint.Module(
    name="enc_lo",
    proto=imprint.protos.GRUStack(hidden=192, layers=2),
    ports=imprint.Ports(in_default=Auto, out_default=192),
    schedule=imprint.Rate(inner_steps=4, emit_every=2),
)

agg = imprint.Module(
    name="agg",
    proto=imprint.protos.Aggregator(mode="concat→linear", out_dim=256),
    ports=imprint.Ports(
        in_=imprint.InPortGroup(
            deep=imprint.InPort(size=192),
            wide=imprint.InPort(size=192),
            layout="disjoint",
        ),
        out_default=256,
    ),
    schedule=imprint.Rate(inner_steps=1, emit_every=4),
)

readout = imprint.Module(
    name="readout",
    proto=imprint.protos.MLP(widths=[256, Auto]),
    ports=imprint.Ports(in_default=256, out_default=Auto),
    schedule=imprint.Rate.follow("agg"),
)

g.add(src, enc_hi, enc_lo, agg, readout)

g.connect(src["out"], enc_hi["in"])
g.connect(src["out"], enc_lo["in"])

g.connect(enc_hi["out"], agg["in.deep"])
g.connect(enc_lo["out"], agg["in.wide"])

g.connect(agg["out"], readout["in"])

agg.objectives.activity_l1(on="out", weight=2e-4)
readout.objectives.ce(on="out", target=imprint.Targets.batch_key("y"))

batch = {
    "x": torch.randn(32, 256, 80),
    "y": torch.randint(0, 500, (32, 64)),
}

g.bind(batch)

from imprint import record

with record(g) as trace:
    out = g.rollout(batch)

loss = g.loss()
loss.backward()

plan = trace.compile(
    backend="cuda_graph",
    fuse_projections=True,
    fuse_port_sums=True,
)

for batch in train_loader:
    out = plan.rollout(batch)
    loss = plan.loss()
    loss.backward()
    optimizer.step()
""",
    "4": """
clock = imprint.Clock()
g = imprint.Graph(clock=clock)

src = imprint.Source("x")

enc_slow = imprint.Module(
    name="enc_slow",
    proto=imprint.protos.GRUStack(hidden=320, layers=2, layernorm=True),
    ports=imprint.Ports(in_default=Auto, out_default=320),
    schedule=imprint.Rate(inner_steps=8, emit_every=1),
)

head = imprint.Module(
    name="head",
    proto=imprint.protos.MLP(widths=[320, Auto]),
    ports=imprint.Ports(in_default=320, out_default=Auto),
    schedule=imprint.Rate(inner_steps=1, emit_every=1),
)

g.add(src, enc_slow, head)
g.connect(src["out"], enc_slow["in"])
g.connect(enc_slow["out"], head["in"])

head.objectives.mse(
    on="out",
    target=imprint.Targets.shifted_input(src, shift=+1),
)

batch = {"x": torch.randn(16, 128, 64)}
g.bind(batch)
g.rollout(batch)
loss = g.loss()
loss.backward()

drive_t = enc_slow.state.input_drive["in"]
feat_t  = enc_slow.state.output["out"]
""",
    "5": """
clock = imprint.Clock()
g = imprint.Graph(clock=clock)

src = imprint.Source("x")

enc = imprint.Module(
    name="enc",
    proto=imprint.protos.GRUStack(hidden=192, layers=1),
    ports=imprint.Ports(in_default=Auto, out_default=192),
    schedule=imprint.Rate(inner_steps=1, emit_every=1),
)

pred = imprint.Module(
    name="pred",
    proto=imprint.protos.MLP(widths=[192, Auto]),
    ports=imprint.Ports(in_default=192, out_default=Auto),
)

err = imprint.Module(
    name="err",
    proto=imprint.protos.Elementwise("sub→abs"),
    ports=imprint.Ports(
        in_=imprint.InPortGroup(
            actual=imprint.InPort(size=Auto),
            predicted=imprint.InPort(size=Auto),
            layout="disjoint",
        ),
        out_default=Auto,
    ),
)

g.add(src, enc, pred, err)

g.connect(src["out"], enc["in"])
g.connect(enc["out"], pred["in"])

g.connect(enc.port_ref("in").drive, err["in.actual"])
g.connect(pred["out"],              err["in.predicted"])

pred.objectives.mse(
    on="out",
    target=imprint.Targets.port_drive(enc, port="in"),
    weight=1.0,
)

ctrl = imprint.Module(
    name="ctrl",
    proto=imprint.protos.GRUStack(hidden=128, layers=1),
    ports=imprint.Ports(in_default=Auto, out_default=128),
)
g.add(ctrl)
g.connect(err["out"], ctrl["in"])

batch = {"x": torch.randn(8, 300, 48)}
g.bind(batch)
g.rollout(batch)
loss = g.loss()
loss.backward()
""",
    "6": """
clock = imprint.Clock()
g = imprint.Graph(clock=clock)

src = imprint.Source("x")

enc = imprint.Module(
    name="enc",
    proto=imprint.protos.GRUStack(hidden=384, layers=3, layernorm=True),
    ports=imprint.Ports(in_default=Auto, out_default=256),
)

enc.define_port(
    "out_deep",
    nodes=imprint.Nodes.of(layer=2, slice=slice(0, 192)),
)
enc.define_port(
    "out_wide",
    nodes=imprint.Nodes.of(layer=1, indices=range(0, 384, 2)),
)

agg = imprint.Module(
    name="agg",
    proto=imprint.protos.Aggregator(mode="sum→linear", out_dim=256),
    ports=imprint.Ports(
        in_=imprint.InPortGroup(
            deep=imprint.InPort(size=192),
            wide=imprint.InPort(size=192),
            layout="disjoint",
        ),
        out_default=256,
    ),
)

head = imprint.Module(
    name="head",
    proto=imprint.protos.MLP(widths=[256, Auto]),
    ports=imprint.Ports(in_default=256, out_default=Auto),
)

g.add(src, enc, agg, head)

g.connect(src["out"], enc["in"])
g.connect(enc["out_deep"], agg["in.deep"])
g.connect(enc["out_wide"], agg["in.wide"])
g.connect(agg["out"], head["in"])

batch = {
    "x": torch.randn(12, 100, 96),
    "y": torch.randint(0, 50, (12,)),
}
g.bind(batch)
out = g.rollout(batch)
loss = g.loss()
loss.backward()
""",
    "6 mask": """
edge_deep = g.connect(enc["out_deep"], agg["in.deep"])
edge_deep.constrain(
    mask=imprint.masks.band(bandwidth=32),
    max_abs=0.4,
)
""",
}

README = {
    "core": """
import imprint

clock = imprint.Clock()
graph = imprint.Graph(clock=clock)
src = imprint.Source("x")
enc = imprint.Module(
    name="enc",
    proto=imprint.protos.GRUStack(hidden=128, layers=2, layernorm=True),
    ports=imprint.Ports(in_default=imprint.Auto, out_default=128),
    schedule=imprint.Rate(inner_steps=8, emit_every=1),
)
head = imprint.Module(
    name="head",
    proto=imprint.protos.MLP(widths=[128, imprint.Auto]),
    ports=imprint.Ports(in_default=128, out_default=imprint.Auto),
)

graph.add(src, enc, head)
graph.connect(src["out"], enc["in"])
graph.connect(enc["out"], head["in"])

imprint.prepare_seq2static_classification(graph, dataset, head_name="head", label_key="y")

enc.objectives.params_l2("recurrent_params", weight=5e-5)

imprint.train_graph(
    graph,
    dataset,
    epochs=5,
    lr=3e-3,
    log_every=10,
    seed=7,
    loss_fn=imprint.last_step_ce_loss(head_name="head", label_key="y"),
    metric_fn=imprint.last_step_accuracy(head_name="head", label_key="y"),
    val_dataset=val_dataset,
    val_every=1,
)
""",
    "stop_grad": """
edge = graph.connect(encoder["out"], aux["in"])
edge.set_stop_grad(True)
""",
    "gradients": """
graph = build_graph(dataset)
grad_monitor = imprint.GradientWatcher(graph, track_ports=True, track_edges=True)
imprint.train_graph(
    graph,
    dataset,
    epochs=cfg["epochs"],
    lr=cfg["lr"],
    grad_monitor=grad_monitor,
)
grad_monitor.close()
""",
}
