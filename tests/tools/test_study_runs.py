"""The training runs of `sparsedrop study`, and what is reported of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparsedrop.conversion.units import UnitLinear
from sparsedrop.nn import (
    RowPatternLSTM,
    RowPatternMLP,
    SparseDropLinear,
    SparseDropMLP,
    TilePatternLinear,
)
from sparsedrop.tools.study import evaluation, resolving, train, trainer
from sparsedrop.tools.study.checkpoint import Store
from sparsedrop.tools.study.dataset import Dataset, Split
from sparsedrop.tools.study.evaluation import Result
from sparsedrop.tools.study.method import Method
from sparsedrop.tools.study.runs import finished, run_all
from sparsedrop.tools.study.tasks import TASKS
from study_cases import resolved, tiny, write_mnist

NONE = Method("none", 0.0)
SPARSEDROP = Method("sparsedrop", 0.5, (16, 8))


def train_alone(method: Method, argv: list[str], seed: int = 0) -> Result:
    settings, data = resolved(argv)
    run = train.Run(method, data, settings, seed)
    for stop in settings.stops():
        run.advance(stop, lambda: None)
    return run.result


# Runs


@pytest.mark.parametrize("task", TASKS)
def test_runs_behind_each_other_do_not_change_each_other(task, tmp_path):
    argv = tiny(task, tmp_path, "--seeds", "2", "--rates", "0.5")
    settings, data = resolved(argv)
    store = Store(tmp_path, settings)
    run_all(data, settings, store, lambda: False)
    found = finished(settings, store)
    assert list(found) == list(settings.methods)
    for method, results in found.items():
        alone = [train_alone(method, argv, seed) for seed in (0, 1)]
        assert results == alone
        assert results[0].records != results[1].records


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
    "method",
    [NONE, Method("dropout", 0.3), Method("sparsedrop", 0.3, (32, 128))],
    ids=lambda m: m.word,
)
def test_every_method_learns_the_digits(method, dtype):
    argv = f"--epochs 8 --sampler bernoulli --block-shapes 32x128 --device cpu --dtype {dtype}"
    best = train_alone(method, argv.split()).best
    assert best.accuracy > 0.9
    assert best.loss < 0.4


@pytest.mark.parametrize(("task", "loss"), [("vit", 1.9), ("gpt", 2.4)])
def test_transformers_learn(task, loss, tmp_path):
    """From ln 10 and ln 12, the losses of mere guesses, in a few steps."""
    argv = tiny(task, tmp_path, "--steps", "120", "--eval-every", "60", "--lr", "0.01")
    argv += ["--batch-size", "32"]
    first, last = train_alone(Method("sparsedrop", 0.1, (16, 8)), argv).records
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
    monkeypatch.setattr(train, "evaluate", lambda *_, **__: next(losses))
    best = train_alone(NONE, tiny("vit", tmp_path, "--eval-every", "1")).best
    assert (best.step, best.loss, best.accuracy) == (2, 0.2, 0.7)


def test_the_test_part_is_only_asked_at_a_new_best(monkeypatch, tmp_path):
    write_mnist(tmp_path)
    argv = ["--data", "mnist", "--data-dir", str(tmp_path), "--device", "cpu", "--width", "8"]
    argv += ["--batch-size", "50", "--epochs", "4"]
    _, data = resolved(argv)
    losses = iter([0.5, 0.2, 0.3, 0.2])

    def evaluate(_, __, split, *, is_text):
        return (9.0, 0.5) if len(split.targets) == len(data.test.targets) else (next(losses), 0.1)

    monkeypatch.setattr(train, "evaluate", evaluate)
    records = train_alone(NONE, argv).records
    assert [record.test_loss for record in records] == [9.0, 9.0, None, None]


def test_a_run_ends_where_its_loss_has_not_become_lower_for_a_while(monkeypatch, tmp_path):
    losses = iter([0.5, 0.3, 0.4, 0.3, 0.2])
    monkeypatch.setattr(train, "evaluate", lambda *_, **__: (next(losses), 0.5))
    options = "--steps 9 --eval-every 1 --patience 2 --methods none --seeds 1"
    settings, data = resolved(tiny("vit", tmp_path, *options.split()))
    store = Store(tmp_path, settings)
    run_all(data, settings, store, lambda: False)
    state = store.load(NONE, 0)
    assert (state["step"], state["is_done"]) == (4, True)
    assert [record[1] for record in state["records"]] == [0.5, 0.3, 0.4, 0.3]


def test_evaluation_drops_nothing_and_is_the_mean_over_all_chunks(device, tmp_path, monkeypatch):
    options = ("--device", device.type, "--dtype", "float32")
    settings, data = resolved(tiny("vit", tmp_path, *options))
    trainer = train.Run(SPARSEDROP, data, settings, 0)._trainer

    def evaluated():
        return evaluation.evaluate(trainer, data, data.validation, is_text=False)

    whole = evaluated()
    monkeypatch.setattr(evaluation, "ROWS", 16 * 100)
    loss, accuracy = evaluated()
    assert loss == pytest.approx(whole[0], rel=1e-5)
    assert accuracy == whole[1]
    monkeypatch.setattr(evaluation, "LOGITS", 16 * 10 * 33)
    assert evaluated()[0] == pytest.approx(whole[0], rel=1e-5)
    logits = trainer.model.eval()(data.validation.inputs)
    wanted = torch.nn.functional.cross_entropy(logits, data.validation.targets)
    assert loss == pytest.approx(wanted.item(), rel=1e-5)


def test_layers_have_the_methods_blocks_and_rate(tmp_path):
    settings, data = resolved(tiny("gpt", tmp_path, "--sampler", "balanced"))
    model = train.Run(SPARSEDROP, data, settings, 0)._trainer.model
    kinds = SparseDropLinear, SparseDropMLP
    layers = [module for module in model.modules() if isinstance(module, kinds)]
    assert tuple(map(type, layers)) == kinds
    assert {(layer.p, layer.block_shape, layer.sampler) for layer in layers} == {
        (0.5, (16, 8), "balanced")
    }


@pytest.mark.parametrize("word", ["row-pattern", "tile-pattern"])
@pytest.mark.parametrize("task", ["mlp", "gpt", "lstm"])
def test_what_patterns_keep_is_scaled_as_asked(task, word, tmp_path):
    settings, data = resolved(tiny(task, tmp_path, "--scale", "pattern"))
    model = train.Run(Method(word, 0.5), data, settings, 0)._trainer.model
    kinds = RowPatternLSTM, RowPatternMLP, TilePatternLinear
    layers = [module for module in model.modules() if isinstance(module, kinds)]
    sides = [module.incoming for module in model.modules() if isinstance(module, UnitLinear)]
    scales = [each.scale for each in layers]
    scales += [side.method.scale for side in sides if side is not None]
    assert scales
    assert set(scales) == {"pattern"}


@pytest.mark.parametrize("word", ["none", "dropout", "sliceout", "drop-path"])
def test_batch_norms_are_evaluated_with_statistics_without_dropout(word, tmp_path):
    settings, data = resolved(tiny("wide-resnet", tmp_path))
    run = train.Run(Method(word, 0.5), data, settings, 0)
    run.advance(1, lambda: None)
    model, before = run._trainer.model, torch.get_rng_state()
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    run._evaluate()
    assert torch.equal(torch.get_rng_state(), before), "a number was drawn"
    assert all(norm.num_batches_tracked == 1 for norm in norms)
    found, read = norms[2].running_var.clone(), []
    norms[2].register_forward_pre_hook(lambda _, args: read.append(args[0].var((0, 2, 3))))
    for norm in norms:
        norm.train()  # all else stays in evaluation
    for batch in data.train.inputs.split(settings.preset.batch_size)[: trainer.CALIBRATION]:
        model(batch)
    torch.testing.assert_close(found, torch.stack(read).mean(0))


def test_statistics_of_an_evaluation_do_not_change_the_training(tmp_path):
    argv = tiny("wide-resnet", tmp_path, "--steps", "6")
    method, states = Method("sliceout", 0.5), []
    for options in (["--eval-every", "1"], ["--eval-every", "5"]):
        settings, data = resolved([*argv, *options])
        run = train.Run(method, data, settings, 0)
        for stop in range(1, 6):
            run.advance(stop, lambda: None)
        states.append((run.records[-1], list(run._trainer.model.parameters())))
    assert states[0][0] == states[1][0]
    assert all(map(torch.equal, states[0][1], states[1][1]))


@pytest.mark.parametrize("word", ["dropout", "sliceout", "drop-path"])
def test_a_convolutional_network_learns_the_digits(word):
    argv = ["--task", "wide-resnet", "--device", "cpu", "--epochs", "6"]
    assert train_alone(Method(word, 0.3), argv).best.accuracy > 0.9


@pytest.mark.parametrize("task", TASKS)
def test_on_a_gpu_all_but_the_lstm_train_in_bfloat16(task, tmp_path, monkeypatch):
    monkeypatch.setattr(resolving, "pick_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(Dataset, "to", lambda data, _: data)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, _: tensor)
    settings, _ = resolved(tiny(task, tmp_path, "--device", "auto"))
    assert settings.dtype == (torch.float32 if task == "lstm" else torch.bfloat16)


def test_each_block_shape_is_a_method_of_its_own(tmp_path):
    options = "--block-shapes", "16x8", "8x16", "--rates", "0.3", "--methods", "none", "sparsedrop"
    settings, _ = resolved(tiny("gpt", tmp_path, *options))
    assert settings.methods == (
        NONE,
        Method("sparsedrop", 0.3, (16, 8)),
        Method("sparsedrop", 0.3, (8, 16)),
    )
    names = {settings.run_name(method, 1) for method in settings.methods}
    assert names == {
        "gpt-none-seed1", "gpt-sparsedrop-p0.3-16x8-seed1", "gpt-sparsedrop-p0.3-8x16-seed1"
    }  # fmt: skip


@pytest.mark.parametrize("clip", [None, 0.01])
def test_gradients_are_clipped_to_a_norm(tmp_path, clip):
    options = () if clip is None else ("--clip", str(clip))
    settings, data = resolved(tiny("gpt", tmp_path, *options))
    trainer = train.Run(NONE, data, settings, 0)._trainer
    trainer.step(Split(data.train.inputs[:8], data.train.targets[:8]))
    norm = torch.stack([p.grad.norm() for p in trainer.model.parameters()]).norm().item()
    assert norm == pytest.approx(clip, rel=1e-3) if clip else norm > 0.1


def test_settings_say_all_that_a_run_depends_on(tmp_path):
    settings, _ = resolved(tiny("gpt", tmp_path))
    same = replace(settings, methods=())
    assert same.as_json() == settings.as_json()
    for change in ({"steps": 5}, {"digest": "other"}, {"dtype": torch.bfloat16}):
        assert replace(settings, **change).as_json() != settings.as_json()
