"""SliceOutAttention: every slice of heads against the masked dense module."""

import re

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import sparsedrop
from slice_cases import assert_equal_to, drawing, every_slice, scale_of, value_and_grads
from sparsedrop import reference
from sparsedrop.nn import SliceOutAttention

MODULES = {
    "heads": {},
    "grouped": {"kv_heads": 3},
    "no bias": {"bias": False, "kv_heads": 2},
    "few": {"p": 0.8},
    "pairs": {"align": 2},
    "from anywhere": {"starts": "all", "normalization": "probabilistic", "kv_heads": 3},
    "not scaled": {"normalization": "none"},
    "fused": {"fused": True},
    "fused, grouped": {"fused": True, "kv_heads": 3},
    "fused, no bias, few": {"fused": True, "bias": False, "p": 0.8},
}


def _attention(dtype=torch.float64, **kwargs):
    return SliceOutAttention(24, 6, **kwargs).to(dtype)


def _layers(module):
    """Weight and bias of q, k, v and out."""
    out = module.out_proj.weight, module.out_proj.bias
    if not module.fused:
        layers = module.q_proj, module.k_proj, module.v_proj
        return [*((layer.weight, layer.bias) for layer in layers), out]
    sizes, bias = [24, *[4 * module.kv_heads] * 2], module.qkv_proj.bias
    biases = [None] * 3 if bias is None else bias.split(sizes)
    return [*zip(module.qkv_proj.weight.split(sizes), biases, strict=True), out]


def _reference(module, x, chosen, bias=0.0):
    layers = _layers(module)
    scale = scale_of(module, module.kv_heads, x.dtype)
    heads = module.heads, module.kv_heads
    return reference.attention(x, layers, heads, chosen.mask(x.device), scale, bias)


def _causal(n):
    return torch.full((n, n), float("-inf"), dtype=torch.float64).triu(1)


SCORES = {
    "all": (lambda: {}, lambda: 0.0),
    "causal": (lambda: {"is_causal": True}, lambda: _causal(5)),
    "masked": (lambda: {"attn_mask": _causal(5)}, lambda: _causal(5)),
    "a bias of each head": (
        lambda: {"attn_mask": torch.arange(6.0).double()[:, None, None].expand(6, 5, 5).cumsum(-1)},
        lambda: torch.arange(6.0).double()[:, None, None].expand(6, 5, 5).cumsum(-1),
    ),
}


@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("kwargs", MODULES.values(), ids=MODULES)
def test_every_slice_is_the_masked_dense_module(kwargs, scores, device):
    module = _attention(**kwargs).to(device)
    x = torch.randn(2, 5, 24, dtype=torch.float64, device=device)
    upstream = torch.randn_like(x)
    how, bias = (make() for make in scores)
    how = {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in how.items()}
    bias = bias.to(device) if isinstance(bias, torch.Tensor) else bias
    names, parameters = zip(*module.named_parameters(), strict=True)
    for chosen in every_slice(module, module.kv_heads):
        with drawing(chosen):
            ours = value_and_grads(lambda x: module(x, **how), x, parameters, upstream)
        exact = value_and_grads(
            lambda x, chosen=chosen: _reference(module, x, chosen, bias), x, parameters, upstream
        )
        assert_equal_to(ours, exact)
        for name, grad in zip(names, ours[2:], strict=True):
            if name == "out_proj.bias":
                continue
            rows = grad.t() if name == "out_proj.weight" else grad
            sizes = [24, *[4 * module.kv_heads] * 2] if name.startswith("qkv") else [len(rows)]
            for part in rows.split(sizes):
                dropped = ~chosen.mask(device).repeat_interleave(len(part) // module.kv_heads)
                assert not part[dropped].any()


def test_the_mean_over_all_slices_is_the_dense_module():
    for kwargs in ({}, {"starts": "all", "normalization": "probabilistic"}):
        module, x = _attention(**kwargs), torch.randn(2, 5, 24).double()
        outs = []
        for chosen in every_slice(module, 6):
            with drawing(chosen):
                outs.append(module(x))
        assert (torch.stack(outs).mean(0) - module.eval()(x)).abs().max() < 1e-9


@pytest.mark.parametrize("how", ["evaluation", "rate of 0"])
@pytest.mark.parametrize("kwargs", MODULES.values(), ids=MODULES)
def test_without_dropout_it_is_the_dense_module_and_draws_nothing(kwargs, how):
    module, x = _attention(torch.float32, **kwargs), torch.randn(2, 5, 24)
    if how == "evaluation":
        module.eval()
    else:
        assert sparsedrop.set_rate(module, 0.0) == 1
    state = torch.get_rng_state()
    if module.fused:
        q, k, v = module.qkv_proj(x).split([24, *[4 * module.kv_heads] * 2], -1)
    else:
        q, k, v = (layer(x) for layer in (module.q_proj, module.k_proj, module.v_proj))
    heads = [t.unflatten(-1, (-1, 4)).transpose(1, 2) for t in (q, k, v)]
    mixed = nn.functional.scaled_dot_product_attention(*heads, enable_gqa=module.kv_heads != 6)
    assert torch.equal(module(x), module.out_proj(mixed.transpose(1, 2).flatten(2)))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("fused", [False, True])
def test_seeds_checkpoints_and_second_derivatives(fused):
    module = _attention(kv_heads=3, fused=fused)
    x = torch.randn(2, 5, 24, dtype=torch.float64, requires_grad=True)

    def grads(run):
        torch.manual_seed(3)
        loss = run(x).square().sum()
        torch.manual_seed(9)
        return torch.autograd.grad(loss, [x, *module.parameters()])

    plain = grads(module)
    assert all(map(torch.equal, plain, grads(module)))
    assert all(map(torch.equal, plain, grads(lambda x: checkpoint(module, x, use_reentrant=False))))
    outs = {module(x).sum().item() for _ in range(20)}
    assert len(outs) == 3

    def run(x):
        torch.manual_seed(3)
        return module(x)

    # Of torch's own attention only the plain one has second derivatives.
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradgradcheck(run, (x[:1, :2].detach().requires_grad_(),))


@pytest.mark.parametrize("kwargs", [{"kv_heads": 3}, {"kv_heads": 3, "fused": True},
                                    {"starts": "all", "normalization": "probabilistic"}],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_program_draws_at_each_run(kwargs, backend):
    module = _attention(**kwargs)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    x, upstream = (torch.randn(2, 5, 24).double() for _ in range(2))
    mask, outs = torch.randn(6, 5, 5).double(), []
    parameters = list(module.parameters())
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(5):
            found = []
            for run in (compiled, module):
                torch.manual_seed(step)
                found.append(
                    value_and_grads(lambda x, run=run: run(x, mask), x, parameters, upstream)
                )
            assert_equal_to(*found)
            outs.append(found[0][0].sum().item())
    assert len(set(outs)) > 1


def test_modules_that_are_not_plain_are_called():
    for kwargs in ({"kv_heads": 3}, {"starts": "all", "normalization": "probabilistic"},
                   {"kv_heads": 3, "fused": True}):  # fmt: skip
        module, x = _attention(**kwargs), torch.randn(2, 5, 24).double()
        torch.manual_seed(3)
        before = module(x)
        seen = []
        last = module.qkv_proj if module.fused else module.v_proj
        last.register_forward_hook(lambda *args, seen=seen: seen.append(args[2].shape))
        torch.manual_seed(3)
        torch.testing.assert_close(module(x), before, rtol=1e-12, atol=1e-12)
        assert seen == [(2, 5, last.out_features)]


def test_autocast():
    module, x = _attention(torch.float32, kv_heads=3), torch.randn(2, 5, 24)
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x)
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert {p.grad.dtype for p in module.parameters()} == {torch.float32}
    torch.manual_seed(3)
    exact = module(x)
    assert (out - exact).norm() <= 0.03 * exact.norm()


@pytest.mark.parametrize("fused", [False, True])
def test_flops_are_those_of_the_slice(fused):
    """One of three key-value heads with two query heads: a third of all but the scores."""
    module = _attention(torch.float32, kv_heads=3, p=0.6, fused=fused)
    x = torch.randn(2, 5, 24)
    with FlopCounterMode(display=False) as counter:
        module(x.requires_grad_()).sum().backward()
    counts = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in counts.items() if "mm" in str(op) and "bmm" not in str(op))
    assert products == 3 * 2 * 10 * 24 * (24 + 12 + 12 + 24) // 3


def test_queries_keys_and_values_of_one_layer_are_views(monkeypatch):
    module, seen = _attention(torch.float32, fused=True), []
    attend = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        nn.functional, "scaled_dot_product_attention",
        lambda *given, **how: (seen.extend(given[:3]), attend(*given, **how))[1],
    )  # fmt: skip
    module(torch.randn(2, 5, 24))
    assert len({tensor.untyped_storage().data_ptr() for tensor in seen}) == 1
    assert [tensor.shape for tensor in seen] == [(2, 3, 5, 4)] * 3


def test_names_of_the_state_dict():
    module = _attention(kv_heads=2)
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    assert shapes == {
        "q_proj.weight": (24, 24), "q_proj.bias": (24,), "k_proj.weight": (8, 24),
        "k_proj.bias": (8,), "v_proj.weight": (8, 24), "v_proj.bias": (8,),
        "out_proj.weight": (24, 24), "out_proj.bias": (24,),
    }  # fmt: skip
    module = _attention(kv_heads=2, fused=True)
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    assert shapes == {
        "qkv_proj.weight": (40, 24), "qkv_proj.bias": (40,),
        "out_proj.weight": (24, 24), "out_proj.bias": (24,),
    }  # fmt: skip


WRONG = {
    "d_model is 24 and heads is 5: it must be a multiple": (24, 5),
    "heads is 6 and kv_heads is 4: it must be a multiple": (24, 6, 4),
    "p must be 0, not 0.5: whole key-value heads are dropped, and there is 1": (24, 6, 1),
    "p must be below 1: a slice keeps some units": (24, 6, 3, 1.0),
}


@pytest.mark.parametrize(("sentence", "args"), WRONG.items(), ids=WRONG)
def test_wrong_arguments(sentence, args):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        SliceOutAttention(*args)


@pytest.mark.parametrize("shape", [(8, 5, 5), (2, 3, 5, 5)], ids=["of a batch", "too few heads"])
def test_a_mask_of_other_heads(shape):
    """The dense module refuses it, and a slice could be cut from it all the same."""
    module, x = SliceOutAttention(24, 6, 3), torch.randn(shape[0], 5, 24)
    sentence = f"attn_mask is {list(shape)}, but there are 6 heads: it is [..., T, T]"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        module(x, torch.zeros(shape))
    with pytest.raises(RuntimeError):
        module.eval()(x, torch.zeros(shape))
