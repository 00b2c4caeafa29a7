"""`sparsedrop study` on a GPU: steps in CUDA graphs, and runs side by side."""

from __future__ import annotations

import json
import math

import pytest
import torch

from sparsedrop.tools import cli
from sparsedrop.tools.study import timing
from sparsedrop.tools.study.method import Method
from sparsedrop.tools.study.tasks import TASKS
from sparsedrop.tools.study.train import Run
from study_cases import resolved, tiny

pytestmark = pytest.mark.gpu


def sized(task: str, *options: str) -> tuple[str, ...]:
    """Options of networks that kernels take; a WideResNet has no blocks, and another width."""
    size = "--width 2" if task == "wide-resnet" else "--width 128 --block-shapes 64x64"
    return *size.split(), "--rates", "0.3", "--device", "cuda", *options


@pytest.mark.parametrize("task", TASKS)
def test_a_step_is_timed_in_graphs(task, tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "BUDGET_MS", 50.0)
    settings, data = resolved(tiny(task, tmp_path, *sized(task, "--methods", "all")))
    found = timing.measure(data, settings, lambda _: None)
    assert found.keys() == set(settings.methods)
    for times in found.values():
        assert times.eager_ms > 0
        assert (times.graph_ms is not None) is TASKS[task].is_captured
        assert times.graph_ms is None or times.graph_ms > 0


@pytest.mark.parametrize("task", TASKS)
def test_runs_side_by_side_are_finished_and_reported(task, tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "BUDGET_MS", 50.0)
    options = sized(task, "--seeds", "2", "--jobs", "2")
    assert cli.main(["study", *tiny(task, tmp_path, *options)]) == 0
    saved = json.loads((tmp_path / "out" / "study.json").read_text())
    assert len(saved["rows"]) == len(TASKS[task].default_methods)
    for row in saved["rows"]:
        assert [seed["seed"] for seed in row["seeds"]] == [0, 1]
        assert math.isfinite(row["loss"]["mean"])
        assert row["times"]["eager_ms"] > 0


WITHOUT_A_HOST = [
    (task, method)
    for task in ("mlp", "vit", "wide-resnet", "gpt")
    for method in ("none", "dropout", "sparsedrop", "drop-path")
    if method in TASKS[task].methods
]


@pytest.mark.parametrize(("task", "method"), WITHOUT_A_HOST)
def test_the_host_does_not_wait_for_steps(task, method, tmp_path):
    options = sized(task, "--steps", "90", "--eval-every", "90")
    settings, data = resolved(tiny(task, tmp_path, *options))
    block = (64, 64) if method == "sparsedrop" else None
    run = Run(Method(method, 0.3, block), data, settings, 0)
    run.advance(3, lambda: None)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run._trainer.model.train()
        for _ in range(3):
            run._trainer.step(run._next_batch())
    finally:
        torch.cuda.set_sync_debug_mode(before)
