"""What a figure depends on besides the arguments: the machine, the versions, the commit."""

from __future__ import annotations

import datetime
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import sparsedrop
from sparsedrop.tools.names import device_name


def facts(device: torch.device) -> dict[str, Any]:
    """JSON values; the commit is None unless the package runs from a git checkout."""
    found: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "sparsedrop": sparsedrop.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": device_name(torch.device("cpu")),
        "cpu_threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        query = "--query-gpu=driver_version,power.limit,clocks.max.sm"
        # By its identity: nvidia-smi counts GPUs that CUDA_VISIBLE_DEVICES may hide.
        smi = _output("nvidia-smi", "-i", f"GPU-{properties.uuid}", query, "--format=csv,noheader")
        driver, power, clock = (smi.split(", ") if smi else [None] * 3)[:3]
        found |= {
            "gpu": device_name(device),
            "sms": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "driver": driver,
            "power_limit": power,
            "max_sm_clock": clock,
            "cuda": torch.version.cuda,
        }
    return found


def title(found: dict[str, Any]) -> str:
    """One line for the head of a report."""
    if "gpu" in found:
        where = f"{found['gpu']} ({found['sms']} SMs, driver {found['driver'] or 'unknown'})"
        versions = f"torch {found['torch']}, CUDA {found['cuda']}"
    else:
        where = f"{found['cpu']} ({found['cpu_threads']} threads)"
        versions = f"torch {found['torch']}"
    commit = f", commit {found['commit']}" if found["commit"] else ""
    return f"{where}, {versions}, sparsedrop {found['sparsedrop']}{commit}"


def _commit() -> str | None:
    """Of the checkout that this package belongs to, if it is tracked there."""
    here = Path(__file__)
    git = ("git", "-C", str(here.parent))
    if _output(*git, "ls-files", here.name) is None:
        return None
    return _output(*git, "describe", "--always", "--dirty", "--abbrev=12")


def _output(*command: str) -> str | None:
    """The first line that a command prints; None where it fails or prints nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.partition("\n")[0].strip() or None
