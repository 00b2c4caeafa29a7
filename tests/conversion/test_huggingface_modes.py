"""Converted models of transformers under autocast, torch.compile and checkpointing, and copies."""

import copy
import io

import pytest
import torch
from networks import BLOCK

import sparsedrop

pytest.importorskip("transformers")

from hugging_face import bert, gpt2, vit

MODELS = pytest.mark.parametrize("make", [gpt2, bert, vit], ids=["gpt2", "bert", "vit"])


def _converted(make):
    torch.manual_seed(0)
    model, inputs = make()
    report = sparsedrop.convert(model, inputs, min_speedup=0, block_shape=BLOCK)
    assert report.converted
    model.config.use_cache = False
    return model, {name: x for name, x in inputs.items() if name != "labels"}


def _logits_and_grads(call, model, inputs, seed=1):
    model.zero_grad()
    torch.manual_seed(seed)
    logits = call(**inputs).logits
    logits.float().square().mean().backward()
    return [logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def _flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


@MODELS
def test_autocast(make):
    """The same step as in float32 but for rounding, with the same masks; gradients in float32."""
    model, inputs = _converted(make)
    exact = _flat(_logits_and_grads(model, model, inputs))
    with torch.autocast("cpu", torch.bfloat16):
        ours = _logits_and_grads(model, model, inputs)
    assert ours[0].dtype is torch.bfloat16
    assert {grad.dtype for grad in ours[1:]} == {torch.float32}
    assert (_flat(ours) - exact).norm() <= 0.02 * exact.norm()


@MODELS
def test_compiled(make):
    model, inputs = _converted(make)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            expected = _logits_and_grads(model, model, inputs, seed)
            ours = _logits_and_grads(compiled, model, inputs, seed)
            for own, truth in zip(ours, expected, strict=True):
                torch.testing.assert_close(own, truth, rtol=1e-4, atol=1e-5)


@MODELS
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed(make, use_reentrant):
    model, inputs = _converted(make)
    expected = _logits_and_grads(model, model, inputs)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert model.is_gradient_checkpointing
    for own, truth in zip(_logits_and_grads(model, model, inputs), expected, strict=True):
        assert torch.equal(own, truth)


@MODELS
def test_copied_and_saved_whole(make):
    model, inputs = _converted(make)
    expected = _logits_and_grads(model, model, inputs)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        for own, truth in zip(_logits_and_grads(other, other, inputs), expected, strict=True):
            assert torch.equal(own, truth)
        assert sparsedrop.revert(other) > 0
        assert list(other.state_dict()) == list(model.state_dict())
        tied = getattr(other, "lm_head", None)
        assert tied is None or tied.weight is other.transformer.wte.weight
