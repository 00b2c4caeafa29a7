"""The CPU's plan: every output element once, and no more work than the live FLOPs."""

import pytest
import torch

from cases import CASES, build, normal
from sparsedrop.ops.cpu import rectangles

CPU = torch.device("cpu")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_plan_is_the_live_work(case):
    masks = build(case, normal, torch.float32, CPU).masks
    wanted = {"a": (case.m, case.k), "b": (case.k, case.n), "out": (case.m, case.n)}
    live = {
        name: masks[f"{name}_mask"].expand()
        if f"{name}_mask" in masks
        else torch.ones(shape).bool()
        for name, shape in wanted.items()
    }
    seen = torch.zeros(case.m, case.n, dtype=torch.int32)
    work = torch.zeros(case.m, case.n, dtype=torch.int32)
    plan = rectangles(case.m, case.k, case.n, tuple(masks.get(f"{name}_mask") for name in wanted))
    for rows, cols, k_runs in plan:
        part = slice(*rows), slice(*cols)
        seen[part] += 1
        assert bool((live["out"][part] == (k_runs is not None)).all())
        for start, end in k_runs or ():
            assert bool(live["a"][part[0], start:end].all())
            assert bool(live["b"][start:end, part[1]].all())
            work[part] += end - start
    assert bool((seen == 1).all())
    assert torch.equal(work, (live["a"].int() @ live["b"].int()) * live["out"])


def test_neighbours_are_merged():
    """All-live masks make one product, whatever their blocks."""
    case = CASES[0]._replace(a_block=(7, 5), b_block=(5, 11), out_block=(7, 11))
    masks = build(case, normal, torch.float32, CPU).masks
    for mask in masks.values():
        mask.live.fill_(True)
    (only,) = rectangles(case.m, case.k, case.n, tuple(masks.values()))
    assert only == ((0, case.m), (0, case.n), ((0, case.k),))
