"""Tensors in codes: what they are made of, and how they are taken apart and put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hf_relopt.lns.format import LNSFormat
from hf_relopt.lns.rows import by_rows, contiguous_stride, decoded_rows, filled_up


class InCodes(Tensor):
    """What a tensor in codes is made of; LNSTensor, derived from it, says what operators do.

    Attributes:
        packed: uint8 [rows, bytes of a row], see ``pack_rows``; a row is an index of the first
            dimension.
        scale: float32 [rows], or 0-dim where the tensor has one scale.
        form: what codes mean.
        columns: entries of a row.
        shard: (rows of the whole, rows of a padded shard) where FSDP2 has cut it, else None.
    """

    packed: Tensor
    scale: Tensor
    form: LNSFormat
    columns: int
    shard: tuple[int, int] | None

    @staticmethod
    def __new__(
        cls: type[InCodes],
        packed: Tensor,
        scale: Tensor,
        form: LNSFormat,
        columns: int,
        size: Sequence[int],
        stride: Sequence[int] | None = None,
        offset: int = 0,
        dtype: torch.dtype = torch.float32,
        shard: tuple[int, int] | None = None,
    ) -> InCodes:
        """See ``from_float``; ``size``, ``stride`` and ``offset`` are those of the decoded rows."""
        made: InCodes = Tensor._make_wrapper_subclass(
            cls,
            tuple(size),
            strides=tuple(stride) if stride is not None else contiguous_stride(size),
            storage_offset=offset,
            dtype=dtype,
            device=packed.device,
        )
        made.packed, made.scale, made.form, made.columns = packed, scale, form, columns
        made.shard = shard
        return made

    def dequantize(self) -> Tensor:
        """The numbers, as a plain tensor of this dtype."""
        with torch.no_grad():
            found = decoded_rows(self.packed, self.scale, self.form, self.columns, self.dtype)
            if self.is_canonical:
                return found.view(self.shape)
            return found.as_strided(self.shape, self.stride(), self.storage_offset())

    @property
    def is_canonical(self) -> bool:
        """True if its entries are those of its rows, one after the other."""
        return (
            self.storage_offset() == 0
            and self.numel() == len(self.packed) * self.columns
            and self.stride() == contiguous_stride(self.shape)
        )

    @property
    def by_rows(self) -> Tensor:
        """The scales, to meet [rows, columns]."""
        return by_rows(self.scale)

    def __repr__(self, *, tensor_contents: Any = None) -> Any:  # type: ignore[override]
        """What it is, without its numbers."""
        return (
            f"LNSTensor({self.form.name}, shape={tuple(self.shape)}, dtype={self.dtype}, "
            f"device='{self.device}', requires_grad={self.requires_grad})"
        )

    # -- what torch asks of a tensor that is made of others --------------------------------------

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        """The inner tensors, and what else there is."""
        offset = int(self.storage_offset())
        return ["packed", "scale"], (self.form, self.columns, self.dtype, self.shard, offset)

    def _stable_hash_for_caching(self) -> str:
        """What torch.compile's cache knows it by, beside its inner tensors."""
        return repr((self.form, self.columns, self.dtype, self.shard))

    @classmethod
    def __tensor_unflatten__(
        cls, inner: dict[str, Tensor], meta: Any, outer_size: Any, outer_stride: Any
    ) -> InCodes:
        """Put together what ``__tensor_flatten__`` has taken apart."""
        form, columns, dtype, shard, offset = meta
        own, view = (inner["packed"], inner["scale"]), (outer_size, outer_stride, offset)
        return cls(*own, form, columns, *view, dtype=dtype, shard=shard)

    def fsdp_pre_all_gather(self, mesh: Any) -> tuple[tuple[Tensor, ...], Any]:
        """What FSDP2 gathers: bytes and scales, filled up to the size of a full shard.

        With one argument: with five, torch refuses inner tensors of another shape than the weight
        where shards are uneven (pytorch#137005).
        """
        world = mesh.size()
        whole, padded = self.shard or (len(self.packed) * world, len(self.packed))
        gathered = [self.packed, *([self.scale] if self.scale.dim() else [])]
        filled = [filled_up(tensor, padded) for tensor in gathered]
        return tuple(filled), (self.scale, whole, tuple(self.shape[1:]))

    def fsdp_post_all_gather(
        self,
        all_gather_outputs: tuple[Tensor, ...],
        metadata: Any,
        param_dtype: torch.dtype,
        *,
        out: Tensor | None = None,
    ) -> tuple[InCodes, tuple[Tensor, ...]] | None:
        """The whole weight of what was gathered, whose bytes it shares."""
        if out is not None:
            return None  # it shares the bytes that were filled again
        scale, whole, tail = metadata
        packed = all_gather_outputs[0][:whole]
        if scale.dim():
            scale = all_gather_outputs[1][:whole]
        made = type(self)(packed, scale, self.form, self.columns, (whole, *tail), dtype=param_dtype)
        return made, all_gather_outputs
