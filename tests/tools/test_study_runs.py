"""The study's training runs and what is reported of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sparsedrop.tools.study import data, report, train


def settings(**changes: object) -> train.Settings:
    defaults = {
        "rates": (0.5,),
        "seeds": 1,
        "epochs": 2,
        "batch_size": 128,
        "block_shape": (32, 128),
        "sampler": "bernoulli",
        "lr": 1e-3,
        "device": torch.device("cpu"),
        "dtype": torch.float32,
    }
    return train.Settings(**(defaults | changes))


# Runs


def train_alone(method: train.Method, seed: int = 0, **changes: object) -> train.Result:
    run = train.Run(method, data.load("digits", None), settings(**changes), seed)
    for _ in range(settings(**changes).epochs):
        run.train_epoch()
    return run.result()


def test_runs_that_take_turns_do_not_change_each_other(capsys):
    in_turn = train.run_all(data.load("digits", None), settings(seeds=2))
    for method, results in in_turn.items():
        assert [run[:4] for run in results] == [train_alone(method, seed)[:4] for seed in (0, 1)]


def test_all_methods_see_the_same_batches(monkeypatch):
    seen: list[list[torch.Tensor]] = []
    batches = train._batches

    def recorded(images: data.Images, size: int) -> Iterator[data.Images]:
        for batch in batches(images, size):
            seen[-1].append(batch.pixels)
            yield batch

    monkeypatch.setattr(train, "_batches", recorded)
    for method in settings().methods():
        seen.append([])
        train_alone(method)
    first, *others = (torch.cat(pixels) for pixels in seen)
    assert first.shape == (2 * (898 // 128) * 128, 64)
    assert all(torch.equal(first, other) for other in others)
    assert not torch.equal(first[: len(first) // 2], first[len(first) // 2 :])


def test_all_methods_begin_with_the_same_weights():
    states = []
    for method in settings().methods():
        torch.manual_seed(3)
        states.append(train.build_model(method, 64, settings()).state_dict())
    for state in states[1:]:
        values = zip(states[0].values(), state.values(), strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in values)


def test_a_run_repeats_itself_and_another_seed_differs():
    method = train.Method(train.SPARSEDROP, 0.3)
    first, again, other = (train_alone(method, seed=seed) for seed in (0, 0, 1))
    assert first[:4] == again[:4]
    assert first.loss != other.loss


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (train.DENSE, torch.float32),
        (train.DROPOUT, torch.float32),
        (train.SPARSEDROP, torch.float32),
        (train.SPARSEDROP, torch.bfloat16),
    ],
)
def test_every_method_learns_the_digits(name, dtype):
    result = train_alone(train.Method(name, 0.3), epochs=8, dtype=dtype)
    assert result.accuracy > 0.9
    assert result.loss < 0.4


def test_a_run_reports_its_epoch_of_least_validation_loss(monkeypatch):
    losses = iter([(0.5, 0.1), (0.2, 0.7), (0.3, 0.9)])
    monkeypatch.setattr(train, "evaluate", lambda *_: next(losses))
    result = train_alone(train.Method(train.DENSE, 0.0), epochs=3)
    assert (result.epoch, result.loss, result.accuracy) == (2, 0.2, 0.7)


def test_evaluation_drops_nothing(device):
    images = data.load("digits", None).validation
    images = data.Images(*(t.to(device) for t in images))
    model = train.build_model(train.Method(train.SPARSEDROP, 0.5), 64, settings()).to(device)
    on_device = settings(device=device)
    assert train.evaluate(model, images, on_device) == train.evaluate(model, images, on_device)


# Report


DENSE, DROPOUT, SPARSEDROP = (
    train.Method(train.DENSE, 0.0),
    train.Method(train.DROPOUT, 0.5),
    train.Method(train.SPARSEDROP, 0.5),
)


def result(step_ms: list[float], accuracy: float = 0.9, loss: float = 0.2) -> train.Result:
    return train.Result(0, 1, accuracy, loss, step_ms)


def test_rows_have_means_and_spreads_over_seeds():
    runs = [result([1.0]), result([1.0], accuracy=0.92, loss=0.4)]
    several, single = (report.summarize({DENSE: seeds})[0] for seeds in (runs, runs[:1]))
    assert several.accuracy.mean == pytest.approx(91)
    assert several.accuracy.std == pytest.approx(2**0.5)
    assert several.loss.text(2) == "0.30 ± 0.14"
    assert single.loss.text(2) == "0.20"


def test_times_are_compared_epoch_by_epoch():
    # The machine halves its speed on the way; the first epoch is the warm-up.
    rows = report.summarize(
        {
            DENSE: [result([9.0, 2.0, 2.0, 2.0, 4.0, 4.0])],
            DROPOUT: [result([9.0, 3.0, 3.0, 3.0, 6.0, 6.0])],
            SPARSEDROP: [result([1.0, 1.0, 1.0, 2.0, 2.0, 2.0])],
        }
    )
    assert [row.step_ms for row in rows] == [2.0, 3.0, 1.0]
    assert [row.speedup for row in rows] == [None, 1.0, 3.0]


def test_a_single_epoch_is_timed():
    assert report.summarize({DENSE: [result([2.0])]})[0].step_ms == 2.0
