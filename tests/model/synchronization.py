"""Mode in which operators that wait for a GPU raise an error, on the CPU too."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {
    f"aten.{name}"
    for name in (
        "_local_scalar_dense",  # item, bool, float, int
        "nonzero",
        "masked_select",
        "unique_dim",
        "unique_consecutive",
        "_unique2",
        "bincount",
        "multinomial",
        "equal",
        "repeat_interleave",
        "_coalesce",
    )
}
"""Operators whose result, or its shape, is known on the host only when the device is done."""
INDEXING = {f"aten.{name}" for name in ("index", "index_put", "index_put_", "_index_put_impl_")}


class NoSynchronization(TorchDispatchMode):
    """RuntimeError at an operator that waits for the device."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = str(func.overloadpacket)
        masks = [
            index
            for index in (args[1] if name in INDEXING else ())
            if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
        ]
        if name in WAITING or masks:
            raise RuntimeError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))
