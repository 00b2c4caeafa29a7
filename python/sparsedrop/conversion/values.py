"""Which value each tensor of a pass holds."""

from __future__ import annotations

from torch import Tensor

from sparsedrop._torch import storage_of, version_of
from sparsedrop.conversion.flow import Value


class Values:
    """Those of tensors that were seen: one for each time that a tensor was written."""

    def __init__(self) -> None:
        self._values: dict[tuple[int, int], Value] = {}
        # Tensors stay alive, so that the id of one is not given to another.
        self._tensors: dict[int, Tensor] = {}
        self._of_storage: dict[int, list[int]] = {}

    def find(self, tensor: Tensor) -> Value | None:
        """What it holds now; None where that was not seen."""
        return self._values.get((id(tensor), version_of(tensor)))

    def new(self, tensor: Tensor) -> Value:
        """Enters what it holds now."""
        shape = None if tensor.is_nested else tuple(tensor.shape)
        about = tensor.dtype, tensor.device, tensor.is_nested, tensor.requires_grad
        value = Value(shape, *about)
        if id(tensor) not in self._tensors:
            self._of_storage.setdefault(storage_of(tensor), []).append(id(tensor))
        self._tensors[id(tensor)] = tensor
        self._values[id(tensor), version_of(tensor)] = value
        return value

    def held(self, tensor: Tensor, version: int) -> list[Value]:
        """What tensors of its memory held at that version."""
        keys = ((other, version) for other in self._of_storage.get(storage_of(tensor), ()))
        return [self._values[key] for key in keys if key in self._values]

    def has_alias(self, tensor: Tensor) -> bool:
        """Whether another one shares its memory."""
        return len(self._of_storage.get(storage_of(tensor), ())) > 1

    def written_under(self, tensor: Tensor) -> Value | None:
        """What another one that shares its memory was written with, the last time."""
        version = version_of(tensor)
        for other in self._of_storage.get(storage_of(tensor), ()):
            value = self._values.get((other, version))
            if version > 0 and other != id(tensor) and value is not None:
                return value
        return None
