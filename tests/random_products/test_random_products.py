"""Random products: by hypothesis on the CPU, by a seeded loop on a GPU; and the judge, judged.

A failure prints a line `run(Case(...), device)`: paste it into a test. `--random-seed N` draws the
same cases again, and `--random-products-seconds S` runs the GPU's loop for longer.
"""

import time

import hypothesis
import pytest
import random_loop
import torch
from hypothesis import strategies as st
from random_cases import SPLITS, Case, Operand, draw_case, kernel_ways, products_of, tile_of
from random_loop import run_many, ways_used
from random_run import run
from random_source import Seeded, Source

import cases
import sparsedrop
from sparsedrop.select import kernels

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)
EXAMPLES = 10000
SECONDS = 120.0
"""On the CPU, after which no further example runs: some take minutes for products in 16 bits."""
ENOUGH = 2000
"""Cases, for every tile and orientation to be among them."""


class Drawn(Source):
    """Choices of hypothesis, which makes them smaller where a case fails."""

    def __init__(self, draw):
        self._draw = draw

    def integer(self, low, high):
        return self._draw(st.integers(low, high))


@st.composite
def any_case(draw):
    return draw_case(Drawn(draw), "cpu")


def test_on_the_cpu(random_seed, note):
    @hypothesis.seed(random_seed)
    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(any_case())
    def each(case):
        if time.monotonic() < end or failed:  # once one has failed, it is made smaller
            failed.append(case)
            run(case, CPU)
            failed.pop()
            count[0] += 1

    end, count, failed = time.monotonic() + SECONDS, [0], []
    each()
    note(f"random products on the CPU: {count[0]}")
    assert count[0] > 0


def _check(tally):
    if tally.failed:
        pytest.fail(str(tally), pytrace=False)


def test_the_loop_on_the_cpu(random_seed):
    """What runs on the GPU, where there is none."""
    tally = run_many(CPU, random_seed, most=300)
    _check(tally)
    assert tally.cases == 300
    assert set(tally.ways) == {"default", "cpu", "dense"}


@pytest.mark.gpu
def test_on_the_gpu(random_seed, pytestconfig, note):
    tally = run_many(GPU, random_seed, pytestconfig.getoption("random_products_seconds"))
    note(tally.summary())
    _check(tally)
    if tally.cases >= ENOUGH:
        assert tally.tiles == set(map(tile_of, kernel_ways(cases.Case(1024, 1024, 1024))))


# Faults that random products found, with the seeds and densities at which they showed.
A, B, OUT = "a", "b", "out"
BF16, FP16 = "bfloat16", "float16"
FOUND = {
    # A line cut a slot narrower started tiles inside a block of b, of 192 columns or a multiple.
    "narrow-lines-1": (1840, 1116, 1096, BF16, {A: ((256, 192), 0.93), B: ((64, 192), 0.09)}),
    "narrow-lines-2": (2048, 1024, 1856, BF16, {A: ((384, 128), 0.95), B: ((256, 192), 0.06)}),
    "narrow-lines-3": (1210, 1112, 880, FP16, {A: ((384, 128), 0.82), B: ((64, 192), 0.73)}),
    "narrow-lines-4": (2048, 2304, 2048, BF16, {A: ((128, 128), 0.5), B: ((128, 192), 0.5)}),
    "narrow-lines-5": (2048, 2304, 2048, BF16, {A: ((128, 128), 0.5), B: ((128, 384), 0.5)}),
    # The same in training, in the gradient of the weight.
    "narrow-lines-6": (1096, 1840, 1116, BF16, {A: ((128, 192), 0.5), OUT: ((192, 128), 0.5)}),
    "narrow-lines-7": (2048, 2048, 2304, BF16, {A: ((128, 192), 0.5), OUT: ((192, 128), 0.9)}),
}


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("found", FOUND.values(), ids=FOUND)
def test_what_was_found_stays_fixed(found, seed):
    """By the library's own choice, and by every tile, orientation and split that may run it."""
    m, n, k, dtype, masked = found
    sides = {name: Operand("row", *masked.get(name, ())) for name in (A, B, OUT)}
    case = Case("matmul", m, n, k, dtype, **sides, grads=(A, B), seed=seed)
    run(case, GPU)
    layer = case._replace(function="linear", bias="row", grads=(A, B, "bias"))
    if case.b.block is None:
        run(layer, GPU)
    ways = [kernel_ways(product, SPLITS) for product in products_of(case)]
    for i in range(max(map(len, ways))):
        chosen = tuple(own[i % len(own)] if own else () for own in ways)
        run(case._replace(products=True, ways=chosen), GPU)


def test_cases_for_a_gpu_reach_every_way(monkeypatch):
    """And all of them pass on the CPU, where nothing is forced: the judge needs no GPU."""
    monkeypatch.setattr(kernels, "tiles_on", lambda major, minor: cases.TILES)
    drawn = [draw_case(Seeded(i), "cuda") for i in range(1000)]
    tiles = {tile_of(way) for case in drawn for way in ways_used(case)}
    assert tiles == {None, *map(tile_of, kernel_ways(cases.Case(1024, 1024, 1024)))}
    monkeypatch.undo()
    small = [case for case in drawn if case.m * case.n * case.k < 2**20]
    assert len(small) > 50
    for case in small[:100]:
        if (case.activation, case.out.layout) == ("gelu", "windows"):
            continue  # which torch does not do on a CPU
        run(case._replace(ways=((), (), ())), CPU)


# The judge has to see each of these in most of the cases where it can be seen.
MATMUL = Case(
    "matmul", 200, 150, 130, "bfloat16",
    Operand("row", (64, 64), 0.5), Operand("column", (64, 50), 0.5), Operand("row", (64, 64), 0.5),
    grads=("a", "b"), ways=(("cpu",), ("cpu",)),
)  # fmt: skip
LINEAR = MATMUL._replace(
    function="linear", b=Operand("row", (50, 64), 0.5), bias="row", activation="relu",
    grads=("a", "b", "bias"),
)  # fmt: skip


def _one_element(out, mask):
    place = tuple(torch.nonzero(mask.expand())[7])
    return out.index_put(tuple(i[None] for i in place), out[place] + 1.0)


def _dropped(value):
    def breaking(out, mask):
        place = tuple(torch.nonzero(~mask.expand())[7])
        return out.index_put(tuple(i[None] for i in place), torch.full_like(out[place], value))

    return breaking


BROKEN = {
    "one element": (_one_element, "error|differ"),
    "a dropped block": (_dropped(1e-30), "in a dropped block"),
    "NaN in a dropped block": (_dropped(float("nan")), "in a dropped block"),
    "NaN": (lambda out, mask: out * float("nan"), "nan"),
    "rounded twice as coarsely": (lambda out, mask: out.mul(1 + 2**-6), "error"),
}


@pytest.mark.parametrize("case", [MATMUL, LINEAR], ids=lambda case: case.function)
@pytest.mark.parametrize(("breaking", "message"), BROKEN.values(), ids=BROKEN)
def test_the_judge_sees_a_broken_result(breaking, message, case, monkeypatch):
    run(case, CPU)
    function = getattr(sparsedrop, case.function)

    def broken(*args, **kwargs):
        return breaking(function(*args, **kwargs), kwargs["out_mask"])

    monkeypatch.setattr(sparsedrop, case.function, broken)
    with pytest.raises(AssertionError, match=message) as caught:
        run(case, CPU)
    assert str(caught.value).startswith(f"run({case!r}, 'cpu')")


class _WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, upstream):
        wrong = upstream.clone()
        wrong.view(-1)[-1] += 1.0
        return wrong


@pytest.mark.parametrize("name", ["a", "b", "bias"])
def test_the_judge_sees_a_broken_gradient(name, monkeypatch):
    case = LINEAR._replace(a=Operand(), b=Operand(), out=Operand())
    run(case, CPU)
    linear, place = sparsedrop.linear, ("a", "b", "bias").index(name)

    def broken(*args, **kwargs):
        args = [_WrongGradient.apply(x) if i == place else x for i, x in enumerate(args)]
        return linear(*args, **kwargs)

    monkeypatch.setattr(sparsedrop, "linear", broken)
    with pytest.raises(AssertionError, match=f"gradient of {name}: error"):
        run(case, CPU)


def test_the_loop_reports_what_is_broken(monkeypatch):
    """A few of the failures in full, all of them counted, and it goes on after each."""
    matmul = sparsedrop.matmul

    def broken(a, b, **masks):
        if a.shape[0] == 128:
            raise ValueError("128 rows")
        return matmul(a, b, **masks).add(1.0)

    monkeypatch.setattr(sparsedrop, "matmul", broken)
    tally = run_many(CPU, 0, most=400)
    assert tally.cases == 400
    assert len(tally.failures) == random_loop.MAX_FAILURES
    assert tally.failed > 100
    text = str(tally)
    assert "--random-seed 0: 400 cases" in text
    assert "ValueError: 128 rows" in text
    assert "result: " in text
    lines = [line for line in text.splitlines() if line.startswith("run(Case(")]
    assert len(lines) == random_loop.MAX_FAILURES
    case = eval(
        lines[0].removeprefix("run(").rpartition(", ")[0], {"Case": Case, "Operand": Operand}
    )
    assert isinstance(case, Case)
