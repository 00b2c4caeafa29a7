"""SliceOutAttention: self-attention that works on a slice of its heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsedrop._torch import is_exporting
from sparsedrop.masks import check_sliced_p, check_starts
from sparsedrop.nn.rated import applied_rate_of
from sparsedrop.nn.sliced import Sliced, check_align, check_gradients
from sparsedrop.nn.stack import is_plain
from sparsedrop.ops.slices import check_normalization
from sparsedrop.slice_out.feed_forward import drop_units
from sparsedrop.slice_out.heads import LiveHeads


class SliceOutAttention(Sliced):
    """Multi-head self-attention, with grouped queries or without, of which whole heads are dropped.

    In training a slice of neighbouring key-value heads is kept with their query heads, a new one in
    each forward pass (Notin et al. 2020): rows of `q_proj`, `k_proj`, `v_proj`, columns of
    `out_proj`. Query head h belongs to key-value head h // (heads / kv_heads). What is dropped is
    neither computed nor stored. The scale within a head stays 1 / sqrt(d_model / heads). In
    evaluation it is the dense module.

    With `fused` one layer `qkv_proj` stands in the place of the three: its rows are those of all
    query heads, then of all key heads, then of all value heads.

    Slices are drawn as for `SliceOutMLP`, also in CUDA graphs, and modules that were replaced or
    have hooks are called in the same way.

    Args:
        d_model: features of input and output.
        heads: query heads.
        kv_heads: key-value heads, of which `heads` is a multiple; None: as many.
        p: drop probability of a head, in [0, 1); may be set later. Kept are `align` times
            round((1 - p) * kv_heads / align) key-value heads: the rate that few heads have is a
            rough one.
        bias: of the linear layers.
        fused: whether queries, keys and values come from one layer.
        align: key-value heads that starts and lengths of slices are multiples of.
        starts: as for `SliceOutMLP`.
        normalization: as for `SliceOutMLP`.
        gradients: as for `SliceOutMLP`.
        device: as for nn.Linear.
        dtype: as for nn.Linear.

    Raises:
        ValueError, TypeError: if one of these is invalid, or if heads do not divide; with one
            key-value head there is nothing to drop.
    """

    def __init__(
        self,
        d_model: int,
        heads: int,
        kv_heads: int | None = None,
        p: float = 0.5,
        *,
        bias: bool = True,
        fused: bool = False,
        align: int = 1,
        starts: str = "cyclic",
        normalization: str = "constant",
        gradients: str = "dense",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        # All of it before a parameter is drawn.
        check_sliced_p(p), check_align(align), check_starts(starts)
        check_normalization(normalization), check_gradients(gradients)
        kv_heads = heads if kv_heads is None else kv_heads
        _check_heads(d_model, heads, kv_heads)
        super().__init__()
        self.heads, self.kv_heads, self.d_head = heads, kv_heads, d_model // heads
        where = {"device": device, "dtype": dtype}
        d_kv, self.fused = kv_heads * self.d_head, fused
        if fused:
            self.qkv_proj = nn.Linear(d_model, d_model + 2 * d_kv, bias, **where)
        else:
            self.q_proj = nn.Linear(d_model, d_model, bias, **where)
            self.k_proj = nn.Linear(d_model, d_kv, bias, **where)
            self.v_proj = nn.Linear(d_model, d_kv, bias, **where)
        self.out_proj = nn.Linear(d_model, d_model, bias, **where)
        self.p, self.align, self.starts = p, align, starts
        self.normalization, self.gradients = normalization, gradients

    def check_rate(self, p: float) -> float:
        """p as a float; ValueError also where there is one head, which no slice may drop."""
        p = super().check_rate(p)
        if p > 0.0 and self.kv_heads < 2:
            raise ValueError(
                f"p must be 0, not {p}: whole key-value heads are dropped, and there is "
                f"{self.kv_heads}"
            )
        return p

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """x [..., T, d_model] -> [..., T, d_model].

        Args:
            x: the tokens.
            attn_mask: as for `scaled_dot_product_attention`, [..., T, T], for all heads or with an
                extent of `heads`.
            is_causal: likewise.

        Raises:
            ValueError: for a mask of another number of heads.
        """
        p = applied_rate_of(self._modules.get("dropout"))
        choice = self.choice(self.kv_heads, p) if p else None
        if choice is None or not self._leaves_out(choice, "key-value heads"):
            return self.out_proj(self._attend(*self._by_modules(x), attn_mask, is_causal))
        group, features = self.heads // self.kv_heads, self.d_head
        if is_exporting() or not all(map(is_plain, self._projections())):
            hidden = self._attend(*self._by_modules(x), attn_mask, is_causal)
            return self.out_proj(drop_units(hidden, choice, group * features))
        live, widths = LiveHeads(choice, self._gradients == "lazy"), (group, 1, 1)
        if self.fused:
            each = tuple(features * width for width in widths)
            q, k, v = live.project_to_each(x, self.qkv_proj, each)
        else:
            layers = zip((self.q_proj, self.k_proj, self.v_proj), widths, strict=True)
            q, k, v = (live.project_to(x, layer, features * width) for layer, width in layers)
        if attn_mask is not None and attn_mask.dim() > 2 and attn_mask.shape[-3] != 1:
            _check_mask(attn_mask, self.heads)
            attn_mask = live.part(attn_mask, attn_mask.dim() - 3, group)
        hidden = self._attend(q, k, v, attn_mask, is_causal)
        return live.project_from(hidden, self.out_proj, group * features)

    def _projections(self) -> tuple[nn.Module, ...]:
        if self.fused:
            return self.qkv_proj, self.out_proj
        return self.q_proj, self.k_proj, self.v_proj, self.out_proj

    def _by_modules(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.fused:
            d_kv = self.kv_heads * self.d_head
            q, k, v = self.qkv_proj(x).split([self.heads * self.d_head, d_kv, d_kv], -1)
            return q, k, v
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        """[..., T, heads * d_head] each, all heads or those that live -> the same as q."""
        q, k, v = (t.unflatten(-1, (-1, self.d_head)).transpose(-3, -2) for t in (q, k, v))
        out = nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask, is_causal=is_causal, enable_gqa=self.heads != self.kv_heads
        )
        return out.transpose(-3, -2).flatten(-2)

    def extra_repr(self) -> str:
        heads = f"heads={self.heads}, kv_heads={self.kv_heads}"
        return f"{heads}{', fused=True' * self.fused}, {super().extra_repr()}"


def _check_mask(mask: Tensor, heads: int) -> None:
    """ValueError where its heads are not all that there are, of which live ones could be taken."""
    if mask.shape[-3] != heads:
        raise ValueError(
            f"attn_mask is {list(mask.shape)}, but there are {heads} heads: it is [..., T, T], its "
            f"extent before these 1 or {heads}"
        )


def _check_heads(d_model: int, heads: int, kv_heads: int) -> None:
    if heads < 1 or d_model % heads:
        raise ValueError(f"d_model is {d_model} and heads is {heads}: it must be a multiple")
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"heads is {heads} and kv_heads is {kv_heads}: it must be a multiple")
