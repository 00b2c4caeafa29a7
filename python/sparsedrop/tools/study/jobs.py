"""Several runs of a study at a time, each in a process of its own."""

from __future__ import annotations

import argparse
import multiprocessing
import signal
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event

import torch
from tqdm import tqdm

from sparsedrop.tools.study.checkpoint import Store
from sparsedrop.tools.study.interruption import SIGNALS, Interruption
from sparsedrop.tools.study.method import Method
from sparsedrop.tools.study.resolving import resolve
from sparsedrop.tools.study.runs import train
from sparsedrop.tools.study.settings import Settings


def run_all(args: argparse.Namespace, settings: Settings, interruption: Interruption) -> None:
    """Trains as `runs.run_all` does, `args.jobs` runs at a time.

    Job i has GPU i, modulo their number; jobs on a CPU share its threads.

    Raises:
        UserError: for a file that cannot be gone on from.
    """
    context = multiprocessing.get_context("spawn")  # a forked process could use no GPU
    stop, number = context.Event(), context.Value("i", 0)
    interruption.then(stop.set)
    runs, begin = list(settings.runs()), (args, stop, interruption.end, number)
    with (
        ProcessPoolExecutor(args.jobs, context, _begin, begin) as pool,
        tqdm(total=len(runs), unit="run") as bar,
    ):
        try:
            futures = [pool.submit(_train, method, seed) for method, seed in runs]
            for future in as_completed(futures):
                future.result()
                bar.update()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


class _Job:
    """What a process keeps from one run to the next."""

    def __init__(self, args: argparse.Namespace, stop: Event, end: float) -> None:
        self.args, self._stop, self._end = args, stop, end
        self.settings, self.data = resolve(args)
        self.store = Store(args.out / "runs", self.settings)

    def is_over(self) -> bool:
        return self._stop.is_set() or time.time() > self._end


_job: list[_Job] = []


def _begin(args: argparse.Namespace, stop: Event, end: float, number: Synchronized[int]) -> None:
    # The first process hears of an interruption, and tells the others by `stop`.
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    with number.get_lock():
        place = number.value
        number.value += 1
    if args.device != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(place % torch.cuda.device_count())
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // args.jobs))
    _job.append(_Job(args, stop, end))


def _train(method: Method, seed: int) -> None:
    job = _job[0]
    if not job.is_over():
        train(method, seed, job.data, job.settings, job.store, job.is_over)
