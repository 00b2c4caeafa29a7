"""An interrupted study goes on as if nothing had happened, and says where it cannot."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

from sparsedrop.tools import cli
from sparsedrop.tools.study import checkpoint, interruption, runs, timing, train
from sparsedrop.tools.study.interruption import Interruption
from sparsedrop.tools.study.tasks import TASKS
from study_cases import fails_with, resolved, tiny


@pytest.fixture(autouse=True)
def _(monkeypatch):
    """Steps are timed in a few laps."""
    monkeypatch.setattr(timing, "LAPS", (1, 1))
    monkeypatch.setattr(timing, "STEPS", 1)


RUNS = ("--seeds", "2", "--rates", "0.5", "--steps", "6", "--eval-every", "2")


def argv_of(task: str, folder: Path, *options: str) -> list[str]:
    # An epoch of three steps, which ends between evaluations.
    batch_size = {"gpt": "16", "lstm": "96"}.get(task, "256")
    return tiny(task, folder, *RUNS, "--batch-size", batch_size, *options)


def untimed(folder: Path) -> list:
    rows = json.loads((folder / "out" / "study.json").read_text())["rows"]
    return [
        [row["method"], row["p"], seed["seed"], seed["best_step"]]
        + [(record["step"], record["loss"], record["accuracy"]) for record in seed["records"]]
        for row in rows
        for seed in row["seeds"]
    ]


@pytest.fixture
def interrupted(monkeypatch):
    """Makes a study end as by Ctrl-C in front of its n-th step of all."""

    def after(steps: int) -> None:
        left = iter(range(steps))
        next_batch = train.Run._next_batch

        def step(self: train.Run) -> object:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return next_batch(self)

        monkeypatch.setattr(train.Run, "_next_batch", step)

    return after


@pytest.mark.parametrize("task", TASKS)
def test_a_resumed_study_has_the_record_of_one_that_never_stopped(
    task, tmp_path, capsys, interrupted, monkeypatch
):
    whole, *resumed = (tmp_path / name for name in ("whole", "0", "1", "8", "23"))
    whole.mkdir()
    assert cli.main(["study", *argv_of(task, whole)]) == 0
    for folder in resumed:
        folder.mkdir()
        interrupted(int(folder.name))
        assert cli.main(["study", *argv_of(task, folder)]) == 130
        assert "--resume" in capsys.readouterr().err
        monkeypatch.undo()
        assert cli.main(["study", *argv_of(task, folder), "--resume"]) == 0
        assert untimed(folder) == untimed(whole), folder.name


def test_a_study_loses_one_interval_and_no_more(tmp_path, interrupted, capsys):
    """The second run of 6 steps is interrupted in its fifth, behind the stop at the fourth."""
    settings, _ = resolved(argv_of("gpt", tmp_path))
    assert list(settings.stops()) == [2, 3, 4, 6]
    interrupted(11)
    assert cli.main(["study", *argv_of("gpt", tmp_path)]) == 130
    states = {
        path.stem: torch.load(path, weights_only=True)["run"]
        for path in (tmp_path / "out" / "runs").iterdir()
    }
    steps = {name: (state["step"], state["is_done"]) for name, state in states.items()}
    assert steps == {"gpt-none-seed0": (6, True), "gpt-dropout-p0.5-seed0": (4, False)}
    assert "model" not in states["gpt-none-seed0"]


def stop_behind(steps):
    """In the place of Interruption.is_over: of runs that ask it once behind each step."""
    asked = iter(range(steps))
    return lambda _: next(asked, None) is None


def test_a_study_stops_in_time_and_reports_what_is_finished(tmp_path, capsys, monkeypatch):
    argv = argv_of("gpt", tmp_path)
    monkeypatch.setattr(Interruption, "is_over", stop_behind(9))
    assert cli.main(["study", *argv, "--minutes", "1"]) == 0
    printed = capsys.readouterr().out
    assert "runs left: the same command with --resume goes on" in printed
    assert "step (ms)" not in printed
    saved = json.loads((tmp_path / "out" / "study.json").read_text())
    assert [len(row["seeds"]) for row in saved["rows"]] == [1]
    monkeypatch.undo()
    (tmp_path / "whole").mkdir()
    assert cli.main(["study", *argv, "--resume"]) == 0
    assert cli.main(["study", *argv_of("gpt", tmp_path / "whole")]) == 0
    assert untimed(tmp_path) == untimed(tmp_path / "whole")


@pytest.mark.parametrize("number", interruption.SIGNALS)
def test_a_signal_lets_a_step_be_finished_and_saved(tmp_path, capsys, monkeypatch, number):
    before = [signal.getsignal(each) for each in interruption.SIGNALS]
    left = iter(range(8))
    next_batch = train.Run._next_batch

    def step(self: train.Run) -> object:
        if next(left, None) is None:
            signal.raise_signal(number)
        return next_batch(self)

    monkeypatch.setattr(train.Run, "_next_batch", step)
    assert cli.main(["study", *argv_of("gpt", tmp_path)]) == 130
    assert "--resume goes on" in capsys.readouterr().err
    path = tmp_path / "out" / "runs" / "gpt-dropout-p0.5-seed0.pt"
    assert torch.load(path, weights_only=True)["run"]["step"] == 3
    assert [signal.getsignal(each) for each in interruption.SIGNALS] == before
    monkeypatch.undo()
    (tmp_path / "whole").mkdir()
    assert cli.main(["study", *argv_of("gpt", tmp_path), "--resume"]) == 0
    assert cli.main(["study", *argv_of("gpt", tmp_path / "whole")]) == 0
    assert untimed(tmp_path) == untimed(tmp_path / "whole")


def test_a_second_signal_ends_at_once():
    told = interruption.Interruption(float("inf"))
    calls = []
    told.then(lambda: calls.append(told.is_over()))
    with told.listening():
        signal.raise_signal(signal.SIGINT)
        assert told.is_over()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert calls == [True]


@pytest.mark.parametrize(("heavy", "saves"), [(1 << 30, 4), (0, 1)])
def test_heavy_runs_are_saved_now_and_then(tmp_path, monkeypatch, heavy, saves):
    """At the four stops of a run; or at its end, where the time between two saves is not over."""
    monkeypatch.setattr(train, "HEAVY", heavy)
    saved = []
    save = checkpoint.Store.save
    monkeypatch.setattr(checkpoint.Store, "save", lambda *args: saved.append(save(*args)))
    argv = [*argv_of("gpt", tmp_path), "--methods", "none", "--seeds", "1"]
    assert cli.main(["study", *argv]) == 0
    assert len(saved) == saves


def test_a_study_without_a_finished_run_has_no_table(tmp_path, capsys):
    assert cli.main(["study", *argv_of("gpt", tmp_path), "--minutes", "0"]) == 0
    assert capsys.readouterr().out.endswith("6 runs left: the same command with --resume goes on\n")
    assert not (tmp_path / "out" / "study.json").exists()


def test_finished_runs_are_not_trained_again(tmp_path, monkeypatch, capsys):
    assert cli.main(["study", *argv_of("gpt", tmp_path)]) == 0
    before = untimed(tmp_path)

    def no_training(*_):
        raise AssertionError("trained again")

    with monkeypatch.context() as patch:
        patch.setattr(train.Run, "advance", no_training)
        assert cli.main(["study", *argv_of("gpt", tmp_path), "--resume"]) == 0
    assert untimed(tmp_path) == before
    # Another method at another rate joins them.
    more = [*argv_of("gpt", tmp_path), "--resume", "--rates", "0.5", "0.3"]
    assert cli.main(["study", *more]) == 0
    after = untimed(tmp_path)
    assert len(after) == 10
    assert [row for row in after if row[1] != 0.3] == before


def test_without_resume_all_is_trained_anew(tmp_path, monkeypatch):
    assert cli.main(["study", *argv_of("gpt", tmp_path)]) == 0
    before = untimed(tmp_path)
    trained = []
    advance = train.Run.advance
    monkeypatch.setattr(train.Run, "advance", lambda *args: trained.append(advance(*args)))
    assert cli.main(["study", *argv_of("gpt", tmp_path)]) == 0
    assert untimed(tmp_path) == before
    assert len(trained) == 6 * 4


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (["--width", "32"], "width is 16 there and 32 here"),
        (["--steps", "8"], "steps is 6 there and 8 here"),
        (["--patience", "1"], "patience is None there and 1 here"),
        (["--lr", "0.1"], "lr is 0.003 there and 0.1 here"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(tmp_path, capsys, options, difference):
    assert cli.main(["study", *argv_of("gpt", tmp_path)]) == 0
    capsys.readouterr()
    sentence = fails_with(capsys, *argv_of("gpt", tmp_path), *options, "--resume")
    assert str(tmp_path / "out" / "runs" / "gpt-none-seed0.pt") in sentence
    assert difference in sentence
    assert sentence.count(" there and ") == 1
    assert "--out" in sentence


def test_a_checkpoint_of_another_text_is_refused(tmp_path, capsys):
    argv = argv_of("gpt", tmp_path)
    assert cli.main(["study", *argv]) == 0
    text = tmp_path / "text.txt"
    text.write_text(text.read_text()[::-1])
    capsys.readouterr()
    assert "data_digest is " in fails_with(capsys, *argv, "--resume")


@pytest.mark.parametrize("share", [0, 0.3, 0.99])
def test_a_checkpoint_that_is_cut_off_is_one_sentence(tmp_path, capsys, share):
    argv = argv_of("gpt", tmp_path)
    assert cli.main(["study", *argv]) == 0
    path = tmp_path / "out" / "runs" / "gpt-sparsedrop-p0.5-16x8-seed1.pt"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    capsys.readouterr()
    sentence = fails_with(capsys, *argv, "--resume")
    assert f"{path} is cut off or not a checkpoint" in sentence
    assert "delete it" in sentence


@pytest.mark.parametrize("content", [{"model": {}}, [1, 2]])
def test_a_file_of_something_else_is_one_sentence(tmp_path, capsys, content):
    path = tmp_path / "out" / "runs" / "gpt-none-seed0.pt"
    path.parent.mkdir(parents=True)
    torch.save(content, path)
    sentence = fails_with(capsys, *argv_of("gpt", tmp_path), "--resume")
    assert f"{path} is not a checkpoint of a study" in sentence


def test_a_save_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    settings, data = resolved(argv_of("gpt", tmp_path))
    store = checkpoint.Store(tmp_path, settings)
    method = settings.methods[0]
    run = train.Run(method, data, settings, 0)
    store.save(run)

    def full(_, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    run.advance(2, lambda: None)
    with pytest.raises(cli.UserError, match=r"cannot save .*none-seed0.pt: no space left"):
        store.save(run)
    assert store.load(method, 0)["step"] == 0
    assert [path.name for path in tmp_path.glob("*.p*")] == ["gpt-none-seed0.pt"]


def test_progress_goes_on_where_it_was_and_is_not_counted_as_speed(tmp_path, monkeypatch):
    bars = []

    class Bar(runs.tqdm):
        def __init__(self, **options):
            super().__init__(**options)
            bars.append(self)

    monkeypatch.setattr(runs, "tqdm", Bar)
    for options, initial in (([], 0), (["--resume"], 36)):
        assert cli.main(["study", *argv_of("gpt", tmp_path), *options]) == 0
        assert (bars[-1].initial, bars[-1].n, bars[-1].total) == (initial, 36, 36)


def test_runs_in_processes_are_the_runs_of_one(tmp_path):
    (tmp_path / "one").mkdir()
    assert cli.main(["study", *argv_of("gpt", tmp_path / "one"), "--no-times"]) == 0
    assert cli.main(["study", *argv_of("gpt", tmp_path), "--jobs", "2", "--no-times"]) == 0
    assert untimed(tmp_path) == untimed(tmp_path / "one")
    # What one of them has finished is not trained again.
    path = tmp_path / "out" / "runs" / "gpt-none-seed1.pt"
    before = path.stat().st_mtime_ns
    (tmp_path / "out" / "runs" / "gpt-none-seed0.pt").unlink()
    argv = [*argv_of("gpt", tmp_path), "--jobs", "2", "--no-times", "--resume"]
    assert cli.main(["study", *argv]) == 0
    assert untimed(tmp_path) == untimed(tmp_path / "one")
    assert path.stat().st_mtime_ns == before
