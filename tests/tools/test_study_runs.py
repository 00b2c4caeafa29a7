"""The training runs of `sparsedrop study`, and what is reported of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparsedrop.nn import SparseDropLinear, SparseDropMLP
from sparsedrop.tools.study import plot, report, train
from sparsedrop.tools.study.checkpoint import Store
from sparsedrop.tools.study.runs import run_all
from sparsedrop.tools.study.settings import Method
from sparsedrop.tools.study.tasks import TASKS
from study_cases import resolved, tiny, write_mnist

NONE = Method("none", 0.0)
SPARSEDROP = Method("sparsedrop", 0.5)


def untimed(result: train.Result) -> list[train.Record]:
    return [record._replace(seconds=0.0, step_ms=0.0) for record in result.records]


def train_alone(method: Method, argv: list[str], seed: int = 0) -> train.Result:
    settings, data = resolved(argv)
    run = train.Run(method, data, settings, seed)
    for stop in settings.stops():
        run.advance(stop, lambda: None)
    return run.result


# Runs


@pytest.mark.parametrize("task", TASKS)
def test_runs_that_take_turns_do_not_change_each_other(task, tmp_path):
    argv = tiny(task, tmp_path, "--seeds", "2", "--rates", "0.5")
    settings, data = resolved(argv)
    in_turn = run_all(data, settings, Store(tmp_path, settings), resume=False)
    assert [method.word for method in in_turn] == ["none", "dropout", "sparsedrop"]
    for method, results in in_turn.items():
        alone = [train_alone(method, argv, seed) for seed in (0, 1)]
        assert list(map(untimed, results)) == list(map(untimed, alone))
        assert untimed(results[0]) != untimed(results[1])


@pytest.mark.parametrize("task", TASKS)
def test_all_methods_begin_with_the_same_weights_and_see_the_same_batches(
    task, tmp_path, monkeypatch
):
    seen: list[torch.Tensor] = []
    next_batch = train.Run._next_batch

    def recorded(self: train.Run) -> object:
        batch = next_batch(self)
        seen[-1].append(batch.inputs)
        return batch

    monkeypatch.setattr(train.Run, "_next_batch", recorded)
    argv = tiny(task, tmp_path, "--rates", "0.5")
    settings, data = resolved(argv)
    weights = []
    for method in settings.methods:
        seen.append([])
        weights.append(list(train.Run(method, data, settings, 3).state()["model"].values()))
        train_alone(method, argv, 3)
    for others in weights[1:]:
        assert all(torch.equal(*pair) for pair in zip(weights[0], others, strict=True))
    first, *others = map(torch.stack, seen)
    assert len(first) == settings.steps
    assert all(torch.equal(first, other) for other in others)
    assert not torch.equal(first[0], first[1])


def test_an_epoch_reads_every_image_at_most_once_in_an_order_of_its_own(tmp_path):
    settings, data = resolved(tiny("mlp", tmp_path))
    run = train.Run(NONE, data, settings, 0)
    epochs = []
    for _ in range(2):
        run.advance(run.step + settings.epoch_steps, lambda: None)
        epochs.append(run.state().get("order"))
    assert epochs[0].shape == (898 // 128, 128)
    assert len(epochs[0].unique()) == epochs[0].numel()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "method", [NONE, Method("dropout", 0.3), Method("sparsedrop", 0.3)], ids=lambda m: m.word
)
def test_every_method_learns_the_digits(method, dtype):
    argv = f"--epochs 8 --sampler bernoulli --block-shape 32 128 --device cpu --dtype {dtype}"
    best = train_alone(method, argv.split()).best
    assert best.accuracy > 0.9
    assert best.loss < 0.4


@pytest.mark.parametrize(("task", "loss"), [("vit", 1.9), ("gpt", 2.4)])
def test_transformers_learn(task, loss, tmp_path):
    """From ln 10 and ln 12, the losses of mere guesses, in a few steps."""
    argv = tiny(task, tmp_path, "--steps", "120", "--eval-every", "60", "--lr", "0.01")
    argv += ["--batch-size", "32"]
    first, last = train_alone(Method("sparsedrop", 0.1), argv).records
    assert last.loss < min(first.loss, loss)


def test_evaluations_are_at_multiples_and_at_the_end_and_ends_of_epochs_are_saved(tmp_path):
    argv = tiny("vit", tmp_path, "--batch-size", "300", "--steps", "7", "--eval-every", "3")
    settings, _ = resolved(argv)
    assert settings.epoch_steps == 2
    assert settings.epochs == 4
    assert list(settings.stops()) == [2, 3, 4, 6, 7]
    assert [record.step for record in train_alone(NONE, argv).records] == [3, 6, 7]


def test_a_run_reports_its_step_of_least_validation_loss(monkeypatch, tmp_path):
    losses = iter([(0.5, 0.1), (0.2, 0.7), (float("nan"), 0.9), (0.2, 0.8)])
    monkeypatch.setattr(train, "evaluate", lambda *_: next(losses))
    best = train_alone(NONE, tiny("vit", tmp_path, "--eval-every", "1")).best
    assert (best.step, best.loss, best.accuracy) == (2, 0.2, 0.7)


def test_the_test_part_is_only_asked_at_a_new_best(monkeypatch, tmp_path):
    write_mnist(tmp_path)
    argv = ["--data", "mnist", "--data-dir", str(tmp_path), "--device", "cpu", "--width", "8"]
    argv += ["--batch-size", "50", "--epochs", "4"]
    _, data = resolved(argv)
    losses = iter([0.5, 0.2, 0.3, 0.2])

    def evaluate(_, __, split, ___):
        return (9.0, 0.5) if len(split.targets) == len(data.test.targets) else (next(losses), 0.1)

    monkeypatch.setattr(train, "evaluate", evaluate)
    records = train_alone(NONE, argv).records
    assert [record.test_loss for record in records] == [9.0, 9.0, None, None]


def test_evaluation_drops_nothing_and_is_the_mean_over_all_chunks(device, tmp_path, monkeypatch):
    options = ("--device", device.type, "--dtype", "float32")
    settings, data = resolved(tiny("vit", tmp_path, *options))
    run = train.Run(SPARSEDROP, data, settings, 0)
    whole = train.evaluate(run._model, data, data.validation, settings)
    monkeypatch.setattr(train, "EVALUATED_ROWS", 16 * 100)
    loss, accuracy = train.evaluate(run._model, data, data.validation, settings)
    assert loss == pytest.approx(whole[0], rel=1e-5)
    assert accuracy == whole[1]
    logits = run._model.eval()(data.validation.inputs)
    wanted = torch.nn.functional.cross_entropy(logits, data.validation.targets)
    assert loss == pytest.approx(wanted.item(), rel=1e-5)


def test_layers_have_the_settings_blocks_and_rate(tmp_path):
    settings, data = resolved(tiny("gpt", tmp_path, "--sampler", "balanced"))
    model = train.Run(SPARSEDROP, data, settings, 0)._model
    kinds = SparseDropLinear, SparseDropMLP
    layers = [module for module in model.modules() if isinstance(module, kinds)]
    assert tuple(map(type, layers)) == kinds
    assert {(layer.p, layer.block_shape, layer.sampler) for layer in layers} == {
        (0.5, (16, 8), "balanced")
    }


# Report


def result(*step_ms: float, loss: float = 0.2, accuracy: float | None = 0.9) -> train.Result:
    times = enumerate(step_ms, 1)
    records = [train.Record(10 * i, i, ms, loss, accuracy, None, None) for i, ms in times]
    return train.Result(0, records)


def test_rows_have_means_and_spreads_over_seeds():
    runs = [result(1.0), result(1.0, accuracy=0.92, loss=0.4)]
    several, single = (report.summarize({NONE: seeds})[0] for seeds in (runs, runs[:1]))
    assert several.accuracy.mean == pytest.approx(91)
    assert several.accuracy.std == pytest.approx(2**0.5)
    assert several.loss.text(2) == "0.30 ± 0.14"
    assert single.loss.text(2) == "0.20"


def test_times_are_compared_evaluation_by_evaluation():
    # The machine halves its speed on the way; the first evaluation is the warm-up.
    rows = report.summarize(
        {
            NONE: [result(9.0, 2.0, 2.0, 2.0, 4.0, 4.0)],
            Method("dropout", 0.5): [result(9.0, 3.0, 3.0, 3.0, 6.0, 6.0)],
            SPARSEDROP: [result(1.0, 1.0, 1.0, 2.0, 2.0, 2.0)],
        }
    )
    assert [row.step_ms for row in rows] == [2.0, 3.0, 1.0]
    assert [row.speedup for row in rows] == [None, 1.0, 3.0]


def test_a_single_evaluation_is_timed():
    assert report.summarize({NONE: [result(2.0)]})[0].step_ms == 2.0


def test_without_nn_dropout_there_is_no_comparison_with_it():
    rows = report.summarize({SPARSEDROP: [result(2.0, 3.0)]})
    assert rows[0].speedup is None
    assert "nn.Dropout" not in report.as_markdown(rows)


def test_a_method_is_drawn_at_its_best_rate():
    losses = {0.1: 0.3, 0.3: 0.2, 0.5: 0.4}
    results = {
        Method(word, p): [result(1.0, loss=loss + (word == "dropout") * (p == 0.3))]
        for word in ("dropout", "sparsedrop")
        for p, loss in losses.items()
    }
    rows = plot.best_rates(report.summarize(results))
    assert [row.method.label for row in rows] == ["nn.Dropout, p = 0.1", "sparsedrop, p = 0.3"]


def test_settings_say_all_that_a_run_depends_on(tmp_path):
    settings, _ = resolved(tiny("gpt", tmp_path))
    same = replace(settings, methods=())
    assert same.as_json() == settings.as_json()
    for change in ({"steps": 5}, {"digest": "other"}, {"dtype": torch.bfloat16}):
        assert replace(settings, **change).as_json() != settings.as_json()
