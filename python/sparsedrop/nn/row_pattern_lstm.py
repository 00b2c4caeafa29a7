"""RowPatternLSTM: an LSTM whose layers read every so many-th feature of their input."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from sparsedrop.masks import check_p, check_scale, probabilities
from sparsedrop.nn.rated import Patterned
from sparsedrop.ops.rows import Rows, drop_units

Hidden = tuple[Tensor, Tensor]


class _Sequences(NamedTuple):
    """An input as torch.lstm takes it, and what undoes that."""

    data: Tensor  # [T, B, features], batch first [B, T, features], or packed [rows, features]
    hx: Hidden  # each [layers * directions, B, features]
    batch_sizes: Tensor | None
    sorted_indices: Tensor | None
    unsorted_indices: Tensor | None
    is_batched: bool


# Of nn.LSTM `dropout` is a number, which nothing reads here.
class RowPatternLSTM(Patterned, nn.LSTM):  # type: ignore[misc]
    """nn.LSTM that drops the input of each layer by Approximate Random Dropout (Song et al. 2018).

    Of a period and an offset, drawn for each layer in each forward pass, the features offset,
    offset + period, ... of the layer's input are kept, the same at all time steps and for all
    gates: the product with the input, which runs over all time steps at once, reads the kept
    features and their weights only. The recurrent part is torch's own, cuDNN's on a GPU, and
    nothing of it is dropped. The input of the first layer is dropped, too, and the output of the
    last is not. Each feature is dropped with probability p. In evaluation it is nn.LSTM.

    Patterns are drawn on the host from torch's default CPU generator. In a CUDA graph that you
    capture, they are fixed at the capture: every replay has the same. torch.compile breaks its
    graph at an nn.LSTM, and so here; where it is told to trace one, the dense LSTM reads an input
    that is masked by a new pattern each time.

    Parameters and `state_dict` are those of nn.LSTM, and so are inputs and outputs, packed
    sequences among them.

    Args:
        input_size: as for nn.LSTM.
        hidden_size: as for nn.LSTM.
        num_layers: as for nn.LSTM.
        bias: as for nn.LSTM.
        batch_first: as for nn.LSTM.
        bidirectional: as for nn.LSTM.
        proj_size: as for nn.LSTM.
        dropout: 0; p stands in its place.
        p: drop probability of the input of each layer; may be set later.
        patterns: of how many periods one is drawn: 1, ..., patterns.
        scale: of kept features: "global" is 1 / (1 - p), "pattern" the period.
        device: as for nn.LSTM.
        dtype: as for nn.LSTM.

    Raises:
        ValueError, TypeError: if an argument is invalid, and for p above (patterns - 1) / patterns,
            the largest rate that the periods give.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        p: float = 0.5,
        patterns: int = 8,
        scale: str = "global",
    ) -> None:
        # All of it before a parameter is drawn.
        probabilities(check_p(p), patterns), check_scale(scale)
        if dropout:
            raise ValueError(
                f"dropout = {dropout} would drop between the layers what p = {p} drops there: pass "
                "p alone"
            )
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, 0.0, bidirectional, proj_size,
            device=device, dtype=dtype,
        )  # fmt: skip
        self._drops(p, patterns, scale)

    def forward(self, input: Any, hx: Hidden | None = None) -> Any:
        """As nn.LSTM: the output, and the last hidden and cell states.

        Args:
            input: [T, B, input_size], with `batch_first` [B, T, input_size], without a batch
                [T, input_size], or a PackedSequence.
            hx: hidden and cell states at the start; None: zeros.
        """
        self._update_flat_weights()
        given = self._sequences(input, hx)
        rows = self._rows()
        if rows is None:
            out, *states = self._lstm(given, given.data, given.hx, self._flat_weights, None)
        else:
            out, *states = self._layer_by_layer(given, rows)
        hidden = self.permute_hidden((states[0], states[1]), given.unsorted_indices)
        if given.batch_sizes is not None:
            indices = given.sorted_indices, given.unsorted_indices
            return PackedSequence(out, given.batch_sizes, *indices), hidden
        if not given.is_batched:
            states = [state.squeeze(1) for state in hidden]
            return out.squeeze(0 if self.batch_first else 1), (states[0], states[1])
        return out, hidden

    def _sequences(self, input: Any, hx: Hidden | None) -> _Sequences:
        batch_sizes = sorted_indices = unsorted_indices = None
        data, is_batched = input, True
        if isinstance(input, PackedSequence):
            data, batch_sizes, sorted_indices, unsorted_indices = input
            batch = int(batch_sizes[0])
        else:
            if input.dim() not in (2, 3):
                raise ValueError(f"the input of an LSTM has 2 or 3 extents, not {input.dim()}")
            is_batched = input.dim() == 3
            if not is_batched:
                data = input.unsqueeze(0 if self.batch_first else 1)
            batch = data.shape[0 if self.batch_first else 1]
        if hx is None:
            layers = self.num_layers * (1 + self.bidirectional)
            hx = (
                data.new_zeros(layers, batch, self.proj_size or self.hidden_size),
                data.new_zeros(layers, batch, self.hidden_size),
            )
        else:
            extents = 3 if is_batched else 2
            if hx[0].dim() != extents or hx[1].dim() != extents:
                raise ValueError(
                    f"the states of this input have {extents} extents, not {hx[0].dim()} and "
                    f"{hx[1].dim()}"
                )
            if not is_batched:
                hx = hx[0].unsqueeze(1), hx[1].unsqueeze(1)
            hx = self.permute_hidden(hx, sorted_indices)
        self.check_forward_args(data, hx, batch_sizes)
        return _Sequences(data, hx, batch_sizes, sorted_indices, unsorted_indices, is_batched)

    def _lstm(
        self,
        given: _Sequences,
        data: Tensor,
        hx: Hidden,
        weights: list[Any],
        layers: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """torch's own, of that many layers; None: of all."""
        count = self.num_layers if layers is None else layers
        how = self.bias, count, 0.0, self.training, self.bidirectional
        if given.batch_sizes is None:
            return torch.lstm(data, hx, weights, *how, self.batch_first)
        return torch.lstm(data, given.batch_sizes, hx, weights, *how)

    def _layer_by_layer(self, given: _Sequences, how: Rows) -> tuple[Tensor, Tensor, Tensor]:
        data, hidden, cells = given.data, [], []
        directions = 1 + self.bidirectional
        of_all = self.all_weights
        with _without_advice(data.is_cuda):
            for layer in range(self.num_layers):
                own = slice(layer * directions, (layer + 1) * directions)
                data, weights = _dropped(data, of_all[own], how)
                hx = given.hx[0][own], given.hx[1][own]
                data, h, c = self._lstm(given, data, hx, weights, 1)
                hidden.append(h)
                cells.append(c)
        return data, torch.cat(hidden), torch.cat(cells)

    def extra_repr(self) -> str:
        """Of both."""
        own = f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"
        options = {
            "bias": (self.bias, True),
            "batch_first": (self.batch_first, False),
            "bidirectional": (self.bidirectional, False),
            "proj_size": (self.proj_size, 0),
        }
        said = [f"{k}={value}" for k, (value, usual) in options.items() if value != usual]
        return ", ".join([own, *said, super().extra_repr()])


def _dropped(data: Tensor, of_layer: list[Any], how: Rows) -> tuple[Tensor, list[Any]]:
    """The kept features of a layer's input [..., features], scaled, and the weights that read them.

    of_layer: the parameters of each direction, that of the input first.
    """
    if torch.compiler.is_compiling():
        return drop_units(data, how), [w for each in of_layer for w in each]
    rows, scale = how.draw(data.shape[-1])
    if rows.count:
        kept, used = rows.kept, data[..., rows.kept] * scale
    else:
        # torch's LSTM reads one feature at least: a zero, whatever stood there.
        kept = slice(0, 1)
        used = torch.where(
            torch.zeros((), dtype=torch.bool, device=data.device), data[..., kept], 0
        )
    return used, [w for first, *rest in of_layer for w in (_packable(first[:, kept]), *rest)]


def _packable(weight: Tensor) -> Tensor:
    """A weight as it is, or a copy where torch could not hand it to cuDNN: it views a weight as one
    line of all its elements."""
    is_line = weight.stride(0) == weight.shape[1] * weight.stride(1)
    return weight if is_line or not weight.is_cuda else weight.contiguous()


@contextmanager
def _without_advice(is_cuda: bool) -> Iterator[None]:
    """cuDNN packs the weights of each call, and torch advises to pack them once: they are new."""
    if not is_cuda:
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "RNN module weights are not part of single")
        yield
