"""What of this build runs on a GPU, and what the selection is told of that GPU."""

from __future__ import annotations

import functools
from typing import Any

import torch

from sparsedrop import _native
from sparsedrop.select.architectures import id_within, tiles_on
from sparsedrop.select.saved import saved_costs
from sparsedrop.select.worked_out import TYPICAL_SPEED, Speed

__all__ = ["gpu_facts", "id_within", "speed_of", "tiles_on"]


@functools.cache
def gpu_facts(index: int) -> dict[str, Any]:
    """What a `Request` says of a GPU: capability, name, SMs, speed, the tiles of this build, and
    what the user has measured there."""
    properties = torch.cuda.get_device_properties(index)
    capability = _native.capability(index)
    tiles = tiles_on(*capability)
    name, sms = properties.name, properties.multi_processor_count
    return {
        "capability": capability,
        "gpu": name,
        "sms": sms,
        "speed": speed_of(properties),
        "tiles": tiles,
        "saved": saved_costs(name, sms, tiles) if tiles else None,
    }


def speed_of(properties: Any) -> Speed | None:
    """Of a GPU, from torch's properties of it; None where they have no clock.

    What else they do not have is taken from the typical GPU.
    """
    clock_khz = getattr(properties, "clock_rate", 0)
    if not clock_khz:
        return None
    # Twice a clock, over so many bits.
    memory_khz = getattr(properties, "memory_clock_rate", 0)
    memory = 2e-3 * memory_khz * getattr(properties, "memory_bus_width", 0) / 8
    return Speed(
        clock_khz * 1e-6,
        memory or TYPICAL_SPEED.memory_bytes_per_us,
        float(getattr(properties, "L2_cache_size", 0) or TYPICAL_SPEED.l2_bytes),
    )
