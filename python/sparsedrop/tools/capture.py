"""A step of training as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch


def captured(step: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """What replays a step, which must have run before, and whose tensors stay where they are."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
