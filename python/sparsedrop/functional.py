"""What users call. Arguments are checked once, before anything is launched: see `operands`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from sparsedrop import _native, operands, sharded
from sparsedrop.masks import (
    BlockMask,
    check_block_shape,
    check_generator,
    check_p,
    check_sampler,
    check_side,
    draw,
)
from sparsedrop.ops import How, Product, check_activation, multiply
from sparsedrop.ops import layer as layers
from sparsedrop.ops import stack as stacks
from sparsedrop.ops.layer import Options
from sparsedrop.ops.stack import Dropped, Layer


def matmul(
    a: Tensor,
    b: Tensor,
    *,
    a_mask: BlockMask | None = None,
    b_mask: BlockMask | None = None,
    out_mask: BlockMask | None = None,
    alpha: float = 1.0,
) -> Tensor:
    """The product alpha * (a ∘ a_mask) (b ∘ b_mask), its own dropped blocks exactly 0.

    Differentiable in a and b. Work on dropped blocks is skipped, and what stands in them, NaN
    included, never reaches the result or a gradient. Under autocast operands are cast as by
    `torch.mm`.

    Args:
        a: `[M, K]`, float16, bfloat16, float32 or float64, of any strides.
        b: `[K, N]`, of the same dtype and device.
        a_mask: mask of a.
        b_mask: mask of b.
        out_mask: mask of the result.
        alpha: factor of the product.

    Returns:
        `[M, N]`, contiguous, of the dtype of a.

    Raises:
        TypeError: for an operand that is not a tensor of these dtypes, or a mask that is not a
            BlockMask.
        ValueError: where extents, dtypes, devices or a mask disagree.
        RuntimeError: for CUDA tensors in a build without CUDA kernels; in forward-mode AD.
    """
    if has_torch_function((a, b)):
        return handle_torch_function(
            matmul, (a, b), a, b, a_mask=a_mask, b_mask=b_mask, out_mask=out_mask, alpha=alpha
        )
    dtype = operands.check_matmul(a, b)
    (m, k), n = a.shape, b.shape[1]
    names, masks = ("a_mask", "b_mask", "out_mask"), (a_mask, b_mask, out_mask)
    operands.check_masks(names, masks, ((m, k), (k, n), (m, n)), a.device)
    how = How(*masks, operands.check_number("alpha", alpha))
    return multiply(Product(operands.cast(a, dtype), operands.cast(b, dtype), None, how))


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    x_mask: BlockMask | None = None,
    weight_mask: BlockMask | None = None,
    out_mask: BlockMask | None = None,
    alpha: float = 1.0,
    activation: str | None = None,
) -> Tensor:
    """act(alpha * (x ∘ x_mask) (weight ∘ weight_mask)ᵀ + bias), its dropped blocks exactly 0.

    `F.linear`'s layout, differentiable in x, weight and bias. The leading extents of x are
    flattened: masks speak of x as `[M, K]`, of weight as `[N, K]` and of the result as `[M, N]`.
    What stands in dropped blocks, NaN included, never reaches the result or a gradient. Under
    autocast operands are cast as by `F.linear`.

    Args:
        x: `[..., K]`, rank 1 or more, float16, bfloat16, float32 or float64.
        weight: `[N, K]`, of the same dtype and device.
        bias: `[N]` or None.
        x_mask: mask of x.
        weight_mask: mask of weight.
        out_mask: mask of the result, applied last.
        alpha: factor of the product, not of the bias.
        activation: None, "relu", "gelu" (the exact one), "gelu_tanh" or "silu".

    Returns:
        `[..., N]` of the dtype of x.

    Raises: as `matmul`, and ValueError for an unknown activation.
    """
    if has_torch_function((x, weight, bias)):
        return handle_torch_function(
            linear, (x, weight, bias), x, weight, bias,
            x_mask=x_mask, weight_mask=weight_mask, out_mask=out_mask,
            alpha=alpha, activation=activation,
        )  # fmt: skip
    check_activation(activation)
    dtype = operands.check_linear(x, weight, bias)
    (n, k), rows = weight.shape, operands.rows_of(x)
    names, masks = ("x_mask", "weight_mask", "out_mask"), (x_mask, weight_mask, out_mask)
    operands.check_masks(names, masks, ((rows, k), (n, k), (rows, n)), x.device)
    how = How(*masks, operands.check_number("alpha", alpha), activation, False, True)
    return _linear(x, weight, bias, dtype, how)


def dropout_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    p: float = 0.5,
    training: bool = True,
    block_shape: tuple[int, int] = (128, 128),
    sampler: str = "bernoulli",
    fuse_wgrad_accumulation: bool = False,
    generator: torch.Generator | None = None,
    side: str = "input",
) -> Tensor:
    """`F.linear(dropout(x, p), weight, bias)`, where blocks of x are dropped and skipped (Lo 2024).

    With `side="output"` it is `dropout(F.linear(x, weight, bias), p)`: blocks of the result are
    dropped, the bias with them, and neither computed nor differentiated.

    The mask is drawn from torch's default generator of the device of x, and live blocks are scaled
    by 1 / (1 - p). With `training=False` or p = 0 this is `F.linear` and draws nothing; with p = 1
    the result is the bias, and on the output's side 0.

    In evaluation, and with p = 0, nothing is checked: what is wrong is for `F.linear` to say.

    Args:
        x: `[..., K]`; its blocks are those of x flattened to `[M, K]`, or of the result flattened
            to `[M, N]`.
        weight: `[N, K]`.
        bias: `[N]` or None.
        p: drop probability in [0, 1].
        training: False for evaluation.
        block_shape: rows and columns of a block. On a GPU the kernels skip multiples of 64 rows
            and columns, those of 128 fastest; blocks of other shapes are right, and save nothing.
        sampler: "bernoulli" (each block on its own) or "balanced" (as many in every block row).
        fuse_wgrad_accumulation: add the gradients of weight and bias in place to their `main_grad`,
            or to a `.grad` that is there already, and hand none to autograd: hooks that wait for a
            gradient, such as those of DDP, are called with None. A float32 buffer is added to by
            the kernels themselves. Not under torch.compile.
        generator: of the device of x; None is torch's default one.
        side: "input" or "output": what is dropped.

    Raises: as `linear`, and ValueError if p, the block shape, the sampler or the side is invalid.
    A backward pass under `create_graph` raises RuntimeError with `fuse_wgrad_accumulation`.
    """
    options = Options(
        check_p(p),
        check_block_shape(block_shape),
        check_sampler(sampler),
        fuse_wgrad_accumulation,
        check_generator(generator),
        check_side(side),
    )
    return dropped_linear(x, weight, bias, options, training)


def dropped_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, options: Options, training: bool
) -> Tensor:
    """`dropout_linear`, where what is dropped has been checked; the weight may be turned."""
    if not training or options.p == 0.0:
        return nn.functional.linear(x, weight.t() if options.weight_turned else weight, bias)
    if not torch.compiler.is_compiling():
        layer = layers.layer_of(x, weight, bias, options)
        if layer is not None:
            return layers.dropout_linear(x, weight, bias, options, layer)
    if options.weight_turned:
        options = options._replace(weight_turned=False)
        return dropped_linear(x, weight.t(), bias, options, training)
    if has_torch_function((x, weight, bias)):
        return handle_torch_function(
            dropped_linear, (x, weight, bias), x, weight, bias, options, training
        )
    if not torch.compiler.is_compiling() and sharded.are_sharded(x, weight, bias):
        return sharded.dropout_linear(x, weight, bias, options, _dropped_locally)
    dtype = operands.check_linear(x, weight, bias)
    device = x.device
    _native.require_build_for(device)
    if options.generator is not None and options.generator.device != device:
        where = options.generator.device
        raise ValueError(f"generator is on {where}, but x is on {device}")
    if options.fuse_wgrad_accumulation:
        if torch.compiler.is_compiling():
            raise RuntimeError("fuse_wgrad_accumulation=True is for eager mode, not torch.compile")
        weight = layers.adding_in_place(weight)
        bias = None if bias is None else layers.adding_in_place(bias)
    if torch.compiler.is_compiling() and x.is_cuda:
        return layers.dropout_linear_compiled(x, weight, bias, options, dtype)
    if not torch.compiler.is_compiling() and layers.suits_cpu(x, weight, options, dtype):
        return layers.dropout_linear_plain(x, weight, bias, options)
    shape = operands.rows_of(x), weight.shape[0] if options.drops_output else x.shape[-1]
    how = options.sampler, shape, options.p, options.block_shape
    mask = draw(*how, device, options.generator)
    x_mask, out_mask = (None, mask) if options.drops_output else (mask, None)
    if options.drops_output and bias is not None:
        bias = bias * options.alpha
    how_of = How(x_mask, None, out_mask, options.alpha, None, False, True)
    return _linear(x, weight, bias, dtype, how_of)


def dropped_stack(x: Tensor, layers: tuple[Layer, ...], dropped: Dropped, training: bool) -> Tensor:
    """Linear layers one behind the other, dropped before, between and behind them.

    The work on dropped blocks is skipped. What is dropped has been checked.

    Args:
        x: `[..., K]`; blocks are those of matrices flattened to `[M, ...]`.
        layers: each takes the features that the one before it makes.
        dropped: the rates, and how masks are drawn.
        training: False for evaluation: nothing is dropped, and nothing checked.

    Raises: as `linear`.
    """
    if not training or not any(dropped.rates):
        return stacks.stack_plain(x, layers, dropped._replace(rates=(0.0,) * len(dropped.rates)))
    is_compiling = torch.compiler.is_compiling()
    if not is_compiling:
        stack = stacks.stack_of(x, layers, dropped)
        if stack is not None:
            return stacks.run_stack(x, layers, dropped, stack)
    given = x, *stacks.parameters_of(layers)
    if has_torch_function(given):
        return handle_torch_function(dropped_stack, given, x, layers, dropped, training)
    if not is_compiling and sharded.are_sharded(*given):
        return sharded.stack(x, layers, dropped)
    dtype = operands.check_stack(x, layers)
    _native.require_build_for(x.device)
    if is_compiling and x.is_cuda:
        return stacks.stack_compiled(x, layers, dropped, dtype)
    if not is_compiling and stacks.suits_cpu(x, layers, dropped, dtype):
        return stacks.stack_plain(x, layers, dropped)
    rows = operands.rows_of(x)
    features = x.shape[-1], *(layer.weight.shape[0] for layer in layers)
    masks = {
        i: stacks.draw_mask(dropped, i, (rows, n), x.device)
        for i, n in enumerate(features)
        if dropped.rates[i] > 0.0
    }
    flat = operands.cast(x.reshape(rows, x.shape[-1]), dtype)
    cast = tuple(layer.to(dtype) for layer in layers)
    out = stacks.by_products(flat, cast, masks, dropped)
    return out.reshape(*x.shape[:-1], features[-1])


def dropped_feed_forward(
    x: Tensor,
    modules: tuple[nn.Linear, nn.Linear | None, nn.Linear],
    activation: str | None,
    dropped: Dropped,
) -> Tensor | None:
    """A tensor parallel feed-forward block of up, gate and down in training; None where it is not
    one that torch's plan alone has sharded, by columns and then by rows.
    """
    block = sharded.FeedForward(*modules)
    if torch.compiler.is_compiling() or not block.is_sharded():
        return None
    return sharded.feed_forward(x, block, activation, dropped, dropped_stack)


def dropped_activation(x: Tensor, index: int, dropped: Dropped) -> Tensor:
    """x [..., n] with the blocks dropped that a stack drops in that place, the rest scaled."""
    if dropped.rates[index] == 0.0:
        return x
    if has_torch_function((x,)):
        return handle_torch_function(dropped_activation, (x,), x, index, dropped)
    if not torch.compiler.is_compiling() and sharded.are_sharded(x):
        return sharded.drop(x, index, dropped)
    return stacks.drop_at(x, index, dropped)


def _dropped_locally(x: Tensor, weight: Tensor, bias: Tensor | None, options: Options) -> Tensor:
    return dropped_linear(x, weight, bias, options, True)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, how: How) -> Tensor:
    """`linear` on checked arguments, in the dtype that autocast wants."""
    x, weight = operands.cast(x, dtype), operands.cast(weight, dtype)
    bias = None if bias is None else operands.cast(bias, dtype)
    if x.dim() == 2:
        return multiply(Product(x, weight, bias, how))
    flat = x.reshape(operands.rows_of(x), x.shape[-1])
    out = multiply(Product(flat, weight, bias, how))
    return out.reshape(*x.shape[:-1], weight.shape[0])
