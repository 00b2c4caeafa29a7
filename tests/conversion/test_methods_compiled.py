"""The other methods under torch.compile."""

import functools

import pytest
import torch
from method_cases import HIDDEN, MODELS, ROWS, WITH_MODELS, WITH_UNITS, D, convert_by
from networks import Feedforward, assert_handed_over, value_and_grads
from torch import nn
from torch.utils.checkpoint import checkpoint


@WITH_MODELS
@WITH_UNITS
def test_compiled_it_draws_anew_without_compiling_again(name, method):
    model, x = MODELS[name][0](), torch.randn(ROWS, D)
    convert_by(model, method, x)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        results = []
        for seed in range(6):
            torch.manual_seed(seed)
            results.append(value_and_grads(compiled, x))
    assert all(bool(t.isfinite().all()) for result in results for t in result)
    assert any(not torch.equal(results[0][0], other[0]) for other in results[1:])


@WITH_MODELS
def test_a_compiled_program_makes_a_slice_alone(name):
    """That of eager mode, from the same seed."""
    model, x = MODELS[name][0](), torch.randn(ROWS, D)
    convert_by(model, "sliceout", x)
    widths = []

    def watched(graph, inputs):
        for node in graph.graph.nodes:
            if node.target is nn.functional.linear:
                widths.append(node.meta["example_value"].shape[-1])
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=watched)
    for seed in range(4):
        results = []
        for each in (compiled, model):
            torch.manual_seed(seed)
            results.append(value_and_grads(each, x))
        for own, truth in zip(*results, strict=True):
            torch.testing.assert_close(own, truth)
    assert HIDDEN // 2 in widths
    assert HIDDEN not in widths


def test_a_slice_goes_from_one_compiled_program_to_the_next():
    model, x = Feedforward(D, HIDDEN), torch.randn(ROWS, D)
    convert_by(model, "sliceout", x)
    assert_handed_over(model, model.up, model.down, x)


@pytest.mark.skipif(
    not hasattr(torch._dynamo.config, "skip_fwd_side_effects_in_bwd_under_checkpoint"),
    reason="this torch has no switch for it",
)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_checkpoint_replays_the_slice(backend):
    """Which the layers hand over within it: torch has to be told that this may be left out of the
    replay."""
    model, x = Feedforward(D, HIDDEN), torch.randn(ROWS, D)
    convert_by(model, "sliceout", x)
    torch._dynamo.reset()
    checkpointed = functools.partial(checkpoint, model, use_reentrant=False)
    compiled = torch.compile(checkpointed, backend=backend, fullgraph=True)
    results = []
    with torch._dynamo.config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=True):
        for each in (compiled, model):
            torch.manual_seed(2)
            given = x.clone().requires_grad_()
            out = each(given)
            grads = torch.autograd.grad(out.square().sum(), [given, *model.parameters()])
            results.append([out, *grads])
    for own, truth in zip(*results, strict=True):
        torch.testing.assert_close(own, truth)
