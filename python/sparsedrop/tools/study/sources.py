"""Where the files of a data set are looked for, and where they are to be had."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import NamedTuple


class Source(NamedTuple):
    """The files of one data set, by the names that its authors gave them."""

    files: tuple[str, ...]
    address: str
    inner: str = "."  # the folder in its archive
    folder: Path | None = None  # where a package of the system puts them
    package: str | None = None  # of Debian

    def find(self, name: str, folder: Path | None) -> list[Path]:
        """The paths of all files, plain or with .gz, in `folder` or where the system has them.

        Raises:
            ValueError: naming the files that are missing, and where they are to be had.
        """
        if folder is None and self.folder is not None and self.folder.is_dir():
            folder = self.folder
        paths = [] if folder is None else [self._path(folder, file) for file in self.files]
        missing = [file for file, path in zip(self.files, paths, strict=False) if path is None]
        if folder is None or missing:
            place = (
                "the folder that --data-dir names"
                if folder is None
                else f"{folder}, which lacks them"
            )
            package = f", or with apt install {self.package}" if self.package else ""
            raise ValueError(
                f"--data {name} reads {', '.join(missing or self.files)} (plain or .gz) from "
                f"{place}; they are to be had at {self.address}{package}"
            )
        return [path for path in paths if path is not None]

    def is_begun_in(self, folder: Path) -> bool:
        """Whether the folder has any of the files."""
        return any(self._path(folder, file) is not None for file in self.files)

    def _path(self, folder: Path, file: str) -> Path | None:
        names = (f"{file}.gz", file)
        places = (place / name for place in (folder, folder / self.inner) for name in names)
        return next((path for path in places if path.is_file()), None)


def read(path: Path) -> bytes:
    """The content of a file.

    Raises:
        ValueError: naming the file, where it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error


def unpacked(path: Path) -> bytes:
    """The content of a file, gzipped or not.

    Raises:
        ValueError: naming the file, where it cannot be read, or is damaged or cut off.
    """
    content = read(path)
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is a damaged gzip file ({error}): fetch it again") from error
