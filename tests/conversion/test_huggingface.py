"""Models of transformers, of small random configurations."""

import copy

import pytest
import torch
from networks import BLOCK, found

import sparsedrop

pytest.importorskip("transformers")

from hugging_face import bert, gpt2, t5, vit


def _names(model, *suffixes):
    """Names of linear layers that end in one of these, in the order of the model."""
    return [name for name, _ in model.named_modules() if name.endswith(suffixes)]


def _outputs(model, *suffixes):
    return [(name, "output") for name in _names(model, *suffixes)]


SITES = {
    "gpt2": (gpt2, lambda m: _outputs(m, "attn.c_proj", "mlp.c_proj")),
    "bert": (bert, lambda m: [*_outputs(m, "output.dense"), ("", "mlp")]),
    "vit": (vit, lambda m: _outputs(m, "attention.o_proj", "mlp.fc2")),
    "t5": (
        t5,
        lambda m: [
            site
            for side, last in (("encoder", "1"), ("decoder", "2"))
            for attention in (
                ("SelfAttention",) if last == "1" else ("SelfAttention", "EncDecAttention")
            )
            for site in [
                (name, "output") for name in _names(m, f"{attention}.o") if name.startswith(side)
            ]
            + (
                [
                    (f"{side}.block.0.layer.{last}.DenseReluDense", "gated"),
                    (f"{side}.block.0.layer.{last}.DenseReluDense.wo", "output"),
                ]
                if attention != "SelfAttention" or last == "1"
                else []
            )
        ],
    ),
}


@pytest.mark.parametrize(("make", "sites"), SITES.values(), ids=SITES)
def test_sites_evaluation_and_training(make, sites):
    torch.manual_seed(0)
    model, inputs = make()
    original, expected = copy.deepcopy(model).eval(), sites(model)
    assert len(expected) >= 4
    report = sparsedrop.convert(model, inputs, min_speedup=0, block_shape=BLOCK)
    assert found(report) == expected
    assert list(model.state_dict()) == list(original.state_dict())
    with torch.no_grad():
        assert torch.equal(model.eval()(**inputs).logits, original(**inputs).logits)
    optimizer = torch.optim.AdamW(model.train().parameters(), 3e-3)
    losses = []
    for _ in range(12):
        loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.97 * sum(losses[:3])
    count = sparsedrop.revert(model)
    assert count > 0
    assert [type(m) for m in model.modules()] == [type(m) for m in original.modules()]


SKIPPED = {
    "gpt2": (
        gpt2,
        {("transformer.drop", "dropout"), ("transformer.h.0.attn", "attention"),
         ("transformer.h.1.attn", "attention")},
    ),
    "vit": (
        vit,
        {("vit.embeddings.dropout", "dropout"), ("vit.layers.0.attention", "attention"),
         ("vit.layers.1.attention", "attention")},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "stay"), SKIPPED.values(), ids=SKIPPED)
def test_what_stays(make, stay):
    model, inputs = make()
    report = sparsedrop.convert(model, inputs, min_speedup=0)
    assert {entry[:2] for entry in report.skipped} == stay


def test_layers_of_hugging_face_are_converted_to_layers_like_them():
    model, inputs = gpt2()
    c_proj = model.transformer.h[0].mlp.c_proj
    shape = c_proj.weight.shape
    sparsedrop.convert(model, inputs, min_speedup=0, p=0.5, block_shape=BLOCK)
    assert type(c_proj).__name__ == "ConvertedConv1D"
    assert c_proj.weight.shape == shape == (128, 32)
    hidden = torch.randn(48, 128)
    torch.manual_seed(5)
    out = c_proj(hidden)
    torch.manual_seed(5)
    live = sparsedrop.BlockMask.bernoulli((48, 32), 0.5, block_shape=BLOCK).expand()
    dense = 2 * torch.addmm(c_proj.bias, hidden, c_proj.weight)
    torch.testing.assert_close(out, torch.where(live, dense, 0.0))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_gradient_checkpointing():
    torch.manual_seed(0)
    model, inputs = gpt2()
    sparsedrop.convert(model, inputs, min_speedup=0, block_shape=BLOCK)
    grads = []
    for is_checkpointed in (False, True):
        if is_checkpointed:
            model.gradient_checkpointing_enable()
        torch.manual_seed(1)
        model.zero_grad()
        model(**inputs, use_cache=False).loss.backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for own, truth in zip(*grads, strict=True):
        assert torch.equal(own, truth)
