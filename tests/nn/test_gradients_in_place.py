"""`fuse_wgrad_accumulation`: gradients that are added to what a parameter has."""

import pytest
import torch

from sparsedrop.nn import SparseDropLinear


@pytest.mark.parametrize("where", ["grad", "main_grad"])
def test_gradients_are_added_in_place(where, device):
    module = SparseDropLinear(
        64, 48, p=0.5, block_shape=(16, 16), fuse_wgrad_accumulation=True, device=device
    )
    x = torch.randn(32, 64, device=device)
    plain = SparseDropLinear.from_linear(module, p=0.5, block_shape=(16, 16))
    torch.manual_seed(1)
    plain(x).square().sum().backward()
    made = [parameter.grad for parameter in module.parameters()]
    buffers = [torch.ones_like(grad) for grad in made]
    for parameter, buffer in zip(module.parameters(), buffers, strict=True):
        parameter.grad = None
        setattr(parameter, where, buffer)
    torch.manual_seed(1)
    module(x).square().sum().backward()
    for parameter, buffer, grad in zip(module.parameters(), buffers, made, strict=True):
        torch.testing.assert_close(buffer, grad + 1)
        assert parameter.grad is (buffer if where == "grad" else None)


@pytest.mark.parametrize("where", ["grad", "main_grad"])
def test_what_is_added_in_place_stays_where_a_backward_pass_is_for_others(where, device):
    module = SparseDropLinear(
        64, 48, p=0.5, block_shape=(16, 16), fuse_wgrad_accumulation=True, device=device
    )
    x = torch.randn(32, 64, device=device, requires_grad=True)
    plain = SparseDropLinear.from_linear(module, p=0.5, block_shape=(16, 16))
    inputs = [x, *module.parameters()]
    torch.manual_seed(1)
    made = torch.autograd.grad(plain(x).square().sum(), inputs)
    buffers = [torch.ones_like(parameter) for parameter in module.parameters()]
    for parameter, buffer in zip(module.parameters(), buffers, strict=True):
        setattr(parameter, where, buffer)
    for wanted in (inputs, inputs[:1], inputs[1:2]):
        torch.manual_seed(1)
        found = torch.autograd.grad(module(x).square().sum(), wanted)
        for own, parameter in zip(found, wanted, strict=True):
            index = next(i for i, each in enumerate(inputs) if each is parameter)
            torch.testing.assert_close(own, made[index])
    module(x).square().sum().backward(inputs=[x])
    assert all(torch.equal(buffer, torch.ones_like(buffer)) for buffer in buffers)


def test_a_main_grad_of_another_shape_is_refused():
    module = SparseDropLinear(64, 48, p=0.5, block_shape=(16, 16), fuse_wgrad_accumulation=True)
    module.weight.main_grad = torch.zeros(3)
    out = module(torch.randn(32, 64)).sum()
    with pytest.raises(ValueError, match=r"main_grad is \[3\], but its parameter is \[48, 64\]"):
        out.backward()


def test_a_main_grad_that_holds_no_gradients_is_refused():
    module = SparseDropLinear(64, 48, block_shape=(16, 16), fuse_wgrad_accumulation=True)
    module.weight.main_grad = torch.zeros(48, 64, dtype=torch.int32)
    out = module(torch.randn(32, 64)).sum()
    with pytest.raises(ValueError, match=r"main_grad is torch.int32, which holds no gradients"):
        out.backward()


def test_fused_gradients_cannot_be_differentiated_again():
    module = SparseDropLinear(64, 48, block_shape=(16, 16), fuse_wgrad_accumulation=True)
    module.weight.main_grad = torch.zeros(48, 64)
    out = module(torch.randn(32, 64)).square().sum()
    with pytest.raises(RuntimeError, match=r"leave it out where .* create_graph"):
        out.backward(create_graph=True)
    with pytest.raises(RuntimeError, match=r"not for transforms of torch\.func"):
        torch.func.grad(
            lambda x: torch.func.functional_call(
                module, dict(module.named_parameters()), (x,)
            ).sum()
        )(torch.randn(32, 64))
