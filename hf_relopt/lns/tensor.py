"""LNSTensor: a weight that is stored as packed codes and scales, and seen as numbers.

It behaves as the tensor of numbers that its codes stand for: what reads it decodes it, gradients
are dense, and views, transposes and shards of whole rows share its bytes. Nothing writes numbers
into it but an optimizer that steps codes, or a copy of other codes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_relopt.errors import ConfigError
from hf_relopt.lns.format import LNSFormat, format_of
from hf_relopt.lns.in_codes import InCodes
from hf_relopt.lns.operators import run, take_over
from hf_relopt.lns.packing import packed_size
from hf_relopt.lns.rows import encoded_rows
from hf_relopt.lns.scale import HEADROOM, scale_shape


class LNSTensor(InCodes):
    """A tensor of two or more dimensions in a logarithmic number system; see InCodes."""

    @classmethod
    def from_float(
        cls, weight: Tensor, form: str | LNSFormat = "lns8", headroom: float = HEADROOM
    ) -> LNSTensor:
        """The nearest codes of a weight's entries.

        Args:
            weight: two or more dimensions, of a float dtype, which is the one that is seen.
            form: a format, or its name.
            headroom: see ``scale_of``.

        Raises:
            ConfigError: an unknown format, entries that are not finite, or a tensor that has no
                rows or no float dtype.
        """
        form = format_of(form)
        if weight.dim() < 2 or not weight.is_floating_point() or weight.is_meta:
            raise ConfigError(
                f"A weight of shape {tuple(weight.shape)} and dtype {weight.dtype} on "
                f"{weight.device} cannot be stored in {form.name}: codes have a scale for each "
                "row of a tensor of two or more dimensions, in a float dtype, and are made of "
                "values. Leave it out, or load the weights first."
            )
        if isinstance(weight, LNSTensor):
            weight = weight.dequantize()
        rows = weight.detach().reshape(len(weight), -1)
        packed, scale = encoded_rows(rows, form, headroom)
        return cls(packed, scale, form, rows.shape[1], weight.shape, dtype=weight.dtype)

    @classmethod
    def without_values(
        cls, shape: torch.Size, form: LNSFormat, dtype: torch.dtype = torch.float32
    ) -> LNSTensor:
        """A weight of this shape in codes on meta: what it is, and how many bytes it has."""
        rows, columns = shape[0], shape[1:].numel()
        packed = torch.empty(
            rows, packed_size(columns, form.bits), dtype=torch.uint8, device=torch.device("meta")
        )
        scale = torch.empty(scale_shape(shape, form)[:1], device=torch.device("meta"))
        return cls(packed, scale, form, columns, shape, dtype=dtype)

    @property
    def data(self) -> Tensor:
        """An alias without a history."""
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        """Take other codes of the same format over; numbers are refused, as by ``copy_``."""
        take_over(self, value)

    def share_memory_(self) -> LNSTensor:
        """Move the bytes to shared memory, in place."""
        self.packed.share_memory_()
        self.scale.share_memory_()
        return self

    def is_shared(self) -> bool:
        """True if the bytes are in shared memory."""
        return self.packed.is_shared()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return run(func, args, kwargs or {})


def is_lns(param: Any) -> bool:
    """True for weights in codes, whole or sharded."""
    return lns_of(param) is not None


def lns_of(param: Any) -> LNSTensor | None:
    """The codes of a weight on this rank, or None for one of plain numbers."""
    if isinstance(param, LNSTensor):
        return param
    if type(param) in (Tensor, torch.nn.Parameter) or not hasattr(param, "to_local"):
        return None
    with torch.no_grad():
        local = param.to_local()
    return local if isinstance(local, LNSTensor) else None


def plain(tensor: Tensor) -> Tensor:
    """The numbers of codes; of numbers themselves."""
    return tensor.dequantize() if isinstance(tensor, LNSTensor) else tensor


# So that checkpoints with codes in them load with weights_only.
torch.serialization.add_safe_globals([LNSTensor, LNSFormat])
