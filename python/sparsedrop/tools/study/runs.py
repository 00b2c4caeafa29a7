"""The loop over all runs of a study."""

from __future__ import annotations

from tqdm import tqdm

from sparsedrop.tools.study.checkpoint import Store
from sparsedrop.tools.study.dataset import Dataset
from sparsedrop.tools.study.settings import Method, Settings
from sparsedrop.tools.study.train import Result, Run


def run_all(
    data: Dataset, settings: Settings, store: Store, *, resume: bool
) -> dict[Method, list[Result]]:
    """Trains every method once per seed, with a progress bar, and saves each run as it goes.

    The methods take turns, so that times of the same steps can be compared: a machine's speed
    changes within minutes, by half on virtual ones. With `resume` runs go on from their files.

    Raises:
        UserError: for a file that cannot be gone on from, before anything is trained.
    """
    seeds = range(settings.preset.seeds)
    done = 0
    if resume:
        states = [store.load(method, seed) for seed in seeds for method in settings.methods]
        done = sum(state["step"] for state in states if state is not None)
    results: dict[Method, list[Result]] = {method: [] for method in settings.methods}
    total = len(seeds) * len(settings.methods) * settings.steps
    with tqdm(total=total, initial=done, unit="step") as bar:
        for seed in seeds:
            runs = [Run(method, data, settings, seed) for method in settings.methods]
            for run in runs:
                state = store.load(run.method, seed) if resume else None
                if state is not None:
                    run.load_state(state)
            _take_turns(runs, settings, store, bar)
            for run in runs:
                results[run.method].append(run.result)
    return results


def _take_turns(runs: list[Run], settings: Settings, store: Store, bar: tqdm) -> None:
    for stop in settings.stops():
        for run in runs:
            if run.step < stop:
                bar.set_description(f"seed {run.seed}, {run.method.label}", refresh=False)
                run.advance(stop, bar.update)
                store.save(run)
