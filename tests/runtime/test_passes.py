"""Passes over captured blocks keep every number, and do what they are for."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from imprint.runtime.passes import clean, one_left, port_sums, reuse_rows, rows_at_once, stacked
from imprint.runtime.passes.facts import Facts, Region, overlap

aten = torch.ops.aten
PASSES = [clean, rows_at_once, reuse_rows, one_left, port_sums, stacked]
PRODUCTS = (aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default)
ALL = [clean, reuse_rows, rows_at_once, one_left, port_sums, clean]


def products(gm):
    return sum(node.target in PRODUCTS for node in gm.graph.nodes)


def ops(gm):
    return [str(n.target).split(".")[1] for n in gm.graph.nodes if n.op == "call_function" and "aten" in str(n.target)]


def tensors(*shapes, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, dtype=torch.float64, generator=draw) for shape in shapes]


def capture(f, args):
    return make_fx(f)(*[a.clone() for a in args])


def run(gm, args):
    """What it returns, and its arguments afterwards."""
    held = [a.clone() for a in args]
    out = gm(*held)
    return [*([] if out is None else [o.clone() for o in out] if isinstance(out, (list, tuple)) else [out]), *held]


def error(f, args, passes, gm=None):
    """Largest difference after passes; the graph; and what they said."""
    gm = capture(f, args) if gm is None else gm
    before, said = run(gm, args), []
    for lower in passes:
        said += lower(gm)
    after = run(gm, args)
    assert len(before) == len(after) and all(torch.isfinite(b).all() for b in before)
    return max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True)), gm, said


# ------------------------------------------------------------------------------------------------ random programs
D, B, T = 4, 2, 3
SHAPES = [(D, D), (D, D), (D, D), (D,), (D,), (B, D), (T, B, D), (T, B, D)]


def program(seed):
    """A function of w0, w1, w2, b0, b1, state, inputs, ring that reads, computes and writes at random."""

    def f(w0, w1, w2, b0, b1, state, inputs, ring):
        draw = random.Random(seed)
        weights, biases, places = [w0, w1, w2], [b0, b1], [state, *ring.unbind(0), ring[1], state]
        values, grown = [state, *(inputs[t] for t in range(T))], []

        def value():
            return draw.choice(values)

        def like(x):
            same = [v for v in values if v.shape == x.shape]
            return draw.choice(same)

        def matrix():
            w = draw.choice([*weights, *weights, *grown[-2:]])
            return w.t() if draw.random() < 0.5 else w

        def multiply(x, w):
            return x @ w if draw.random() < 0.4 else torch.addmm(draw.choice(biases), x, w)

        for _ in range(draw.randint(8, 26)):
            kind = draw.choice(
                ["mm", "mm", "mm", "again", "pair", "sum", "sum", "tanh", "tanh_", "add_", "cat", "rows", "rows",
                 "slice", "chunk_", "copy", "copy", "step", "grad", "clone", "scale", "both", "view", "place",
                 *["across"] * 2]
            )  # fmt: skip
            x = value()
            if kind == "mm":
                values.append(multiply(x, matrix()))
            elif kind == "again":
                w = matrix()
                values += [multiply(v, w) for v in draw.sample(values, min(3, len(values)))]
            elif kind == "pair":
                values += [multiply(x, matrix()), multiply(x, matrix())]
            elif kind == "sum":
                values.append(multiply(x, matrix()) + multiply(like(x), matrix()) + like(x))
            elif kind == "tanh":
                values.append(x.tanh())
            elif kind == "tanh_":
                y = multiply(x, matrix())
                seen = y[:, :2]
                values += [y.tanh_(), *([torch.cat([seen, seen], 1)] * (draw.random() < 0.3))]
            elif kind == "add_":
                values.append((x * 0.5).add_(like(x)))
            elif kind == "cat":
                small = [v for v in values if v.shape[0] <= B]
                values.append(torch.cat(draw.choices(small, k=draw.randint(1, 3))))
            elif kind == "rows":
                w, b = matrix(), draw.choice(biases)
                parts = draw.choices([v for v in values if v.shape[0] <= B], k=3)
                ticks = [torch.addmm(b, p, w).tanh() for p in parts]
                again = torch.addmm(b, torch.cat(parts), w)
                values += [*ticks, again.tanh()]
            elif kind == "slice":
                values.append(x[: max(1, x.shape[0] - 1)])
            elif kind == "chunk_":
                left, right = torch.ops.aten.unsafe_split.Tensor(multiply(x, matrix()), D // 2, 1)
                left.add_(right).sigmoid_()
                values.append(torch.cat([left, right * left], 1))
            elif kind == "copy":
                draw.choice(places).copy_(draw.choice([v for v in values if v.shape == (B, D)]) * 1.0)
            elif kind == "step":
                draw.choice(weights).sub_(0.1 * draw.choice([*weights, *grown]))
                draw.choice(biases).mul_(0.9)
            elif kind == "grad":
                g, h = like(x), like(x)
                grown += [(g.t() @ x).tanh(), (h.t() @ x).tanh()]
            elif kind == "clone":
                values.append(x.clone())
            elif kind == "scale":
                values.append(x * x.detach())
            elif kind == "both":
                values.append(like(x) - 0.3 * x)
            elif kind == "across":
                w, b, place, other = draw.choice(weights), draw.choice(biases), draw.choice(places), draw.choice(values)
                first, second = torch.addmm(b, place, w), torch.addmm(b, other, w)
                term, same = place @ draw.choice(weights), draw.random()
                place.copy_(first.tanh() if same < 0.3 else place)
                w.mul_(0.9 if same < 0.8 else 1.0)
                values += [
                    first,
                    place @ draw.choice(weights) + term,
                    second,
                    torch.addmm(b, torch.cat([place, other]), w),
                    torch.addmm(b, other, w),
                ]
            elif kind == "view":
                values.append(x.contiguous().view(-1).view(x.shape))
            else:
                values.append(draw.choice(places))
            values[-1] = values[-1] if values[-1].shape[0] == B else values[-1].clamp(-2, 2)
        state.copy_(values[-1][:1].expand(B, D).tanh())
        return [v.tanh() for v in values[-6:]] + [g.clone() for g in grown[-2:]]

    return f


@pytest.mark.parametrize("lower", PASSES, ids=lambda p: p.__name__)
def test_random_programs_keep_their_numbers(lower):
    args, fired = tensors(*SHAPES), 0
    for seed in range(6):
        # alone, and after the cleaning that it expects
        for passes in ([lower], [clean, lower]):
            worst, _, said = error(program(seed), args, passes)
            assert worst < 1e-12, (seed, [p.__name__ for p in passes])
        fired += bool(said)
    assert fired > 2


@pytest.mark.parametrize("order", range(4))
def test_random_programs_keep_their_numbers_in_any_order_of_passes(order):
    args, less = tensors(*SHAPES, seed=1), 0
    for seed in range(100 + 10 * order, 108 + 10 * order):
        passes = [*PASSES, *PASSES]
        random.Random(seed).shuffle(passes)
        gm = capture(program(seed), args)
        count = products(gm)
        worst, gm, _ = error(None, args, ALL if order == 0 else passes, gm)
        assert worst < 1e-12, (seed, [p.__name__ for p in passes])
        less += products(gm) < count
    assert less > 5


@pytest.mark.parametrize("lower", [rows_at_once, one_left, port_sums, clean, reuse_rows], ids=lambda p: p.__name__)
def test_a_pass_that_is_blind_to_writes_is_caught(lower, monkeypatch):
    """Negative control: the random programs hold what a pass that moves reads over writes gets wrong."""
    honest = Facts.find_accesses

    def blind(self):
        honest(self)
        self.writes.clear()
        self.accesses.clear()

    args, wrong = tensors(*SHAPES), 0
    for seed in range(16):
        gm = capture(program(seed), args)
        if lower is not clean:
            clean(gm)
        with monkeypatch.context() as patched:
            patched.setattr(Facts, "find_accesses", blind)
            wrong += error(None, args, [lower], gm)[0] > 1e-9
    assert wrong > 0


# ---------------------------------------------------------------------------------------------- what each is for
def fires(f, args, lower, before, after):
    """It changes how many products there are, and no number."""
    gm = capture(f, args)
    assert products(gm) == before
    worst, gm, said = error(None, args, [lower], gm)
    assert worst < 1e-12 and products(gm) == after, said
    assert bool(said) == (before != after)
    return gm, said


W, A, X, Y, S = (4, 4), (4,), (3, 2, 4), (2, 4), (2, 4)


def test_inputs_of_all_ticks_are_one_product_without_a_copy():
    def f(w, b, x):
        return sum(torch.addmm(b, x[t], w.t()).tanh() for t in range(3))

    gm, said = fires(f, tensors(W, A, X), lambda gm: clean(gm) and rows_at_once(gm), 3, 1)
    assert said == ["3 products with w_1 in one: (6, 4) @ (4, 4)"]
    assert "cat" not in ops(gm)
    gm, _ = fires(lambda w, x, y: (x[0] @ w) * (y @ w), tensors(W, X, Y), rows_at_once, 2, 1)
    assert "cat" in ops(gm)


def test_a_label_names_the_weight():
    gm = capture(lambda w, x: (x[0] @ w) * (x[1] @ w), tensors(W, X))
    next(iter(gm.graph.nodes)).meta["label"] = "edges.x_out__enc_in.proj.weight"
    assert rows_at_once(gm) == ["2 products with edges.x_out__enc_in.proj.weight in one: (4, 4) @ (4, 4)"]


def test_what_waits_for_another_product_stays_apart():
    fires(lambda w, x: ((x[0] @ w).tanh() @ w).tanh() @ w, tensors(W, X), rows_at_once, 3, 3)
    fires(lambda x, a, b: (x @ a) @ (x @ b).t(), tensors(Y, W, W), one_left, 3, 2)
    fires(lambda x, a, b: ((x @ a).tanh() @ b).tanh(), tensors(Y, W, W), stacked, 2, 2)


def write(f, at):
    """`f` of two calls with a write of the first tensor between them (1), after (2) or before them (0)."""

    def g(w, *rest):
        steps = f(w, *rest)
        out = []
        for i in range(3):
            if i == at:
                w.mul_(2)
            out += [next(steps)] if i < 2 else []
        return out

    return g


@pytest.mark.parametrize("at, after", [(0, 1), (1, 2), (2, 1)])
def test_a_write_between_keeps_products_apart(at, after):
    def rows(w, x):
        yield x[0] @ w
        yield x[1] @ w

    def left(x, a, b):
        yield x @ a
        yield x @ b

    def through_a_view(w, x):
        v = w.view(-1).view(4, 4).t()
        yield x[0] @ v
        yield x[1] @ v

    fires(write(rows, at), tensors(W, X), rows_at_once, 2, after)
    fires(write(through_a_view, at), tensors(W, X), rows_at_once, 2, after)
    fires(write(left, at), tensors(W, W, W), one_left, 2, after)


def test_a_write_elsewhere_in_the_same_storage_keeps_nothing_apart():
    def f(w, x, rows):
        first = x[0] @ w[:, :2]
        w[:, rows:].mul_(2)
        return first, x[1] @ w[:, :2]

    fires(lambda w, x: f(w, x, 2), tensors(W, X), lambda gm: clean(gm) + rows_at_once(gm), 2, 1)
    fires(lambda w, x: f(w, x, 1), tensors(W, X), rows_at_once, 2, 2)


def test_a_write_of_an_input_between_keeps_it_where_it_was_read():
    def f(w, x, s):
        first = s @ w
        s.copy_(x[0])
        return first, s @ w, x[1] @ w

    # reading s before and after the write cannot be one read; with the copy forwarded it needs not be
    fires(f, tensors(W, X, S), rows_at_once, 3, 2)
    fires(f, tensors(W, X, S), lambda gm: clean(gm) + rows_at_once(gm), 3, 1)


def test_signals_that_go_through_a_slot_are_batched_once_cleaned():
    def f(w, u, x, slot, ring):
        out = []
        for t in range(3):
            slot.copy_((x[t] @ w).tanh())
            out.append(slot @ u)
            ring[t].copy_(out[-1])
        return torch.stack([ring[t] for t in range(3)])

    args = tensors(W, W, X, S, X)
    gm = capture(f, args)
    kept = capture(f, args)
    rows_at_once(kept)
    assert products(gm) == 6 and products(kept) == 4  # inputs only: reads of the slot wait for its writes
    worst, gm, said = error(None, args, [clean, rows_at_once], gm)
    assert worst < 1e-12 and products(gm) == 2
    assert ops(gm).count("copy_") == 4 and "2 writes that nothing read" in said  # the last value of the slot, the ring


def test_projections_of_one_source_are_one_product():
    def f(x, a, b, c, bias):
        return (x @ a.t()).tanh() + torch.addmm(bias, x, b.t()) * (x @ c)

    gm, said = fires(f, tensors(Y, W, W, W, A), one_left, 3, 1)
    assert said == ["3 projections of x_1 in one product: a_1, b_1, c_1: (2, 4) @ (4, 12)"]
    assert ops(gm).count("cat") == 2
    # weights that lie one after the other are read where they are
    gm, _ = fires(lambda x, ws: (x @ ws[0].t()) * (x @ ws[1].t()), tensors(Y, (2, 4, 4)), one_left, 2, 1)
    assert "cat" not in ops(gm)


def test_gradients_from_one_input_are_one_product():
    _, said = fires(lambda g, h, x: (g.t() @ x) * (h.t() @ x), tensors(Y, Y, Y), one_left, 2, 1)
    assert said == ["2 products with x_1 in one: (8, 2) @ (2, 4)"]


def test_sums_of_products_are_one_product():
    def f(x, y, a, b, c, d):
        return (torch.addmm(c, x, a.t()) + torch.addmm(d, y, b.t()) + y + x @ b).tanh()

    _, said = fires(f, tensors(Y, Y, W, W, A, A), port_sums, 3, 1)
    assert said == ["a sum of 3 products in one: a_1, b_1: (2, 12) @ (12, 4)"]

    def used(x, y, a, b):
        p = x @ a
        return p + y @ b, p

    fires(used, tensors(Y, Y, W, W), port_sums, 2, 2)

    def waits(x, a, b):
        p = x @ a
        return p + p.tanh() @ b

    fires(waits, tensors(Y, W, W), port_sums, 2, 2)
    fires(lambda x, y, a, b: torch.add(x @ a, y @ b, alpha=2), tensors(Y, Y, W, W), port_sums, 2, 2)
    fires(lambda x, a, b: x @ a + b[0] @ a, tensors(Y, W, X), port_sums, 2, 1)


def test_gradients_summed_over_ticks_are_one_product():
    def f(g, x):
        return g[0].t() @ x[0] + g[1].t() @ x[1] + g[2].t() @ x[2]

    gm, _ = fires(f, tensors(X, X), port_sums, 3, 1)
    assert "cat" not in ops(gm)  # both lie one after the other


def test_equal_sizes_are_stacked():
    def f(x, y, a, b, c, d):
        return torch.addmm(c, x, a.t()).tanh() * torch.addmm(d, y, b.t())

    gm, said = fires(f, tensors(Y, Y, W, W, A, A), stacked, 2, 1)
    assert "baddbmm" in ops(gm) and said[0].startswith("2 products of (2, 4) @ (4, 4) in one batched: a_1, b_1")
    fires(lambda x, y, a, b: (x @ a) * (y @ b)[:, :4], tensors(Y, Y, W, (4, 5)), stacked, 2, 2)


def test_rows_are_not_computed_twice():
    def f(w, b, x, s, written):
        states = [s]
        for t in range(3):
            states.append((x[t] + torch.addmm(b, states[-1], w.t())).tanh())
        if written:
            w.mul_(2)
        again = torch.addmm(b, torch.cat(states[:-1]), w.t())
        return states[-1], (torch.cat([x[t] for t in range(3)]) + again).tanh().square()

    args = tensors(W, A, X, S)
    _, said = fires(lambda *a: f(*a, False), args, lambda gm: clean(gm) + reuse_rows(gm), 4, 3)
    assert said[-1] == "1 product and 2 other ops on rows taken from the ticks that computed them"
    fires(lambda *a: f(*a, True), args, reuse_rows, 4, 4)


def test_rows_of_a_stack_and_of_a_state_that_is_written_afterwards():
    def f(w, s, early):
        a = s @ w
        b = a.tanh() @ w
        if early:
            s.mul_(2)
        rows = torch.stack([s, a.tanh()]).view(4, 4)
        s.mul_(2)
        return rows @ w, b

    fires(lambda w, s: f(w, s, False), tensors(W, S), lambda gm: clean(gm) + reuse_rows(gm), 3, 2)
    fires(lambda w, s: f(w, s, True), tensors(W, S), reuse_rows, 3, 3)


# ---------------------------------------------------------------------------------------------------- cleaning
def test_cleaning_leaves_what_it_must():
    def f(x, s):
        old = s.clone()  # s is written while this is there
        s.add_(x.detach().clone())
        y = x.tanh()
        z = x.tanh()
        z.add_(1)
        once, again = torch.rand_like(x), torch.rand_like(x)
        return old, y + z, (once != again).any(), s.expand(2, 4) * 1

    args = tensors(Y, S)
    gm = capture(f, args)
    before = [v.clone() for v in run(gm, args)]
    clean(gm)
    after = run(gm, args)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True)) and bool(after[2])
    found = ops(gm)
    assert found.count("clone") == 1 and found.count("tanh") == 1 and found.count("rand_like") == 2
    assert found.count("add_") == 1 and not {"detach", "expand"} & set(found)


def test_what_is_read_between_two_writes_is_not_dropped():
    def f(read, x, s):
        s.copy_(x)
        held = s[:, 1:].sum() if read else None
        s.copy_(x * 2)
        return x * 3 if held is None else held

    args = tensors(Y, S)
    for read, copies in ((False, 1), (True, 1)):  # the read goes to what was copied
        worst, gm, _ = error(partial(f, read), args, [clean])
        assert worst == 0 and ops(gm).count("copy_") == copies

    def partly(x, s):
        s[0].copy_(x[0])
        held = s.sum()
        s.copy_(x * 2)
        return held

    worst, gm, _ = error(partly, args, [clean])
    assert worst == 0 and ops(gm).count("copy_") == 2


def test_placeholders_that_share_memory_say_so():
    arena = tensors((40,))[0]

    def views(flat):
        return flat[:16].view(4, 4), flat[8:24].view(4, 4), flat[32:40].view(2, 4)

    def f(w, v, x):
        first = x @ w
        v.mul_(2)
        return first * (x @ w)

    def numbers(told):
        gm = make_fx(f)(*[t.clone() for t in views(arena)])
        if told is not None:
            for node, offset in zip(list(gm.graph.nodes)[:3], told, strict=True):
                node.meta.update(storage="arena", **({} if offset is None else {"offset": offset}))
        flat, kept = arena.clone(), arena.clone()
        right = gm(*views(flat))
        clean(gm)
        return float((gm(*views(kept)) - right).abs().max()), products(gm)

    assert numbers((0, 8, 32)) == (0.0, 2) and numbers((None, None, None)) == (0.0, 2)
    wrong, count = numbers(None)
    assert wrong > 1e-3 and count == 1


def test_regions():
    assert not overlap(Region(0, (4, 2), (6, 1), 4), Region(2, (4, 4), (6, 1), 4))
    assert overlap(Region(0, (4, 3), (6, 1), 4), Region(2, (4, 4), (6, 1), 4))
    assert not overlap(Region(0, (0,), (1,), 4), Region(0, (4,), (1,), 4))
    assert overlap(Region(None, (1,), (1,), 4), Region(9, (4,), (1,), 4))
    assert not overlap(Region(0, (2,), (1,), 4), Region(1, (2,), (1,), 8)) and Region(0, (8,), (1,), 4).covers(
        Region(1, (2, 2), (3, 1), 4)
    )
    assert overlap(Region(3, (2,), (1,), 4), Region(1, (2,), (1,), 8))


def test_ops_that_go_by_strides_keep_what_they_read_as_it_is():
    def strided(x, a, b):
        return torch.as_strided(x @ a, (2, 2), (4, 1)) * (x @ b)[:, :2]

    fires(strided, tensors(Y, W, W), one_left, 2, 2)
    fires(lambda x, a, b: (x @ a)[:, :2] * (x @ b)[:, :2], tensors(Y, W, W), one_left, 2, 1)

    def fused(w, x, g, m, v, step):
        gradients = [g.t() @ x, (g * 2).t() @ x]
        torch._fused_adam_([w], [gradients[0]], [m], [v], [], [step], lr=0.1, beta1=0.9, beta2=0.99, weight_decay=0.0,
                           eps=1e-8, amsgrad=False, maximize=False)  # fmt: skip
        return gradients[1]

    # it may write the gradient that it is given
    args = [*tensors(W, Y, Y), *(torch.zeros(4, 4, dtype=torch.float64) for _ in range(2)), torch.ones(())]
    fires(fused, args, one_left, 2, 2)


def test_a_view_that_no_longer_fits_becomes_a_copy():
    gm, _ = fires(lambda x, a, b: (x @ a).view(-1) * (x @ b).view(-1), tensors(Y, W, W), one_left, 2, 1)
    assert ops(gm).count("clone") == 2


# ------------------------------------------------------------------------------------------------ a captured block
def gru_block(ticks, cell, lr=0.05):
    """Ticks forward, then learning from all of them as rows, then a step of SGD in place."""
    names = [name for name, _ in cell.named_parameters()]

    def f(w_ih, w_hh, b_ih, b_hh, x, y, h, out):
        weights = dict(zip(names, (w_ih, w_hh, b_ih, b_hh), strict=True))
        before, state = [], h
        with torch.no_grad():
            for t in range(ticks):
                before.append(state)
                state = torch.func.functional_call(cell, weights, (x[t], state))
        leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
        inputs = torch.cat([x[t] for t in range(ticks)])
        rows = torch.func.functional_call(cell, leaves, (inputs, torch.cat(before)))
        loss = (rows - y).square().mean()
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        with torch.no_grad():
            h.copy_(state)
            out.copy_(loss.detach())
            for w, gradient in zip(weights.values(), gradients, strict=True):
                w.sub_(lr * gradient)

    return f


def test_a_block_of_a_recurrent_cell():
    ticks, rows, sizes = 8, 3, (5, 6)
    torch.manual_seed(0)
    cell = nn.GRUCell(*sizes).double()
    data = tensors((ticks, rows, sizes[0]), (ticks * rows, sizes[1]), (rows, sizes[1]))
    args = [*(p.detach().clone() for p in cell.parameters()), *data, torch.zeros((), dtype=torch.float64)]
    gm = capture(gru_block(ticks, cell), args)
    assert products(gm) == 2 * ticks + 2 + 2
    worst, gm, said = error(None, args, ALL, gm)
    # the recurrence tick by tick, all inputs at once, two gradients, and nothing forward again
    assert worst < 1e-12 and products(gm) == ticks + 1 + 2, said
    assert not {"detach", "add_", "sigmoid_", "tanh_"} & set(ops(gm))
    assert all("val" in node.meta for node in gm.graph.nodes if node.op != "output")
