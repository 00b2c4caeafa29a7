"""The files that a study goes on from after an interruption."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from sparsedrop.tools.cli import UserError
from sparsedrop.tools.study.method import Method
from sparsedrop.tools.study.settings import Settings
from sparsedrop.tools.study.train import Run

KEYS = {"settings", "run"}


class Store:
    """A folder with one file a run, NAME.pt."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder, self._names = folder, settings.run_name
        self._runs = list(settings.runs())
        # Another release of torch may draw other numbers from the same generators.
        self._settings = {**settings.as_json(), "torch": str(torch.__version__)}

    def save(self, run: Run) -> None:
        """Replaces the run's file at once: whoever reads it finds the old one or the new one.

        Raises:
            UserError: if it cannot be written.
        """
        path = self._path(run.method, run.seed)
        part = path.with_suffix(".part")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save({"settings": self._settings, "run": run.state()}, file)
            os.replace(part, path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise UserError(
                f"cannot save {path}: {(error.strerror or str(error)).lower()}: choose another "
                "folder with --out"
            ) from error

    def load(self, method: Method, seed: int) -> dict[str, Any] | None:
        """The state of a run in its file; None where there is no file.

        Raises:
            UserError: if the file is damaged, or of a study with other settings.
        """
        path = self._path(method, seed)
        if not path.exists():
            return None
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # what torch raises for a damaged file has no common base
            raise UserError(
                f"{path} is cut off or not a checkpoint: delete it, and --resume trains that run "
                "anew"
            ) from error
        if not isinstance(content, dict) or content.keys() != KEYS:
            raise UserError(
                f"{path} is not a checkpoint of a study: move it, or choose another --out"
            )
        theirs, ours = content["settings"], self._settings
        differences = [
            f"{key} is {theirs.get(key)} there and {ours.get(key)} here"
            for key in (*ours, *(key for key in theirs if key not in ours))
            if theirs.get(key) != ours.get(key)
        ]
        if differences:
            raise UserError(
                f"{path} is of other settings: {', '.join(differences)}. Give the same ones, or "
                "choose another --out, or leave out --resume to train anew"
            )
        return content["run"]

    def clear(self) -> None:
        """Deletes the files of the study's runs.

        Raises:
            UserError: if that cannot be done.
        """
        for method, seed in self._runs:
            path = self._path(method, seed)
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise UserError(
                    f"cannot delete {path}: {(error.strerror or str(error)).lower()}: choose "
                    "another folder with --out"
                ) from error

    def check(self) -> None:
        """Reads the files of all runs.

        Raises:
            UserError: as `load` does.
        """
        for method, seed in self._runs:
            self.load(method, seed)

    def _path(self, method: Method, seed: int) -> Path:
        return self._folder / f"{self._names(method, seed)}.pt"
