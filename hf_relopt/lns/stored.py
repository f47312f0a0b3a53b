"""Codes in files: bytes and scales under two names, and a note of what they are the codes of.

The note is in the file's metadata: the format, and the shape of each weight, which bytes do not
tell. With it a file can be read in pieces without its model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from hf_relopt.errors import ConfigError, FormatError, one_line
from hf_relopt.lns.format import LNSFormat
from hf_relopt.lns.packing import group_of, packed_size
from hf_relopt.lns.rows import contiguous_stride
from hf_relopt.lns.scale import scale_shape
from hf_relopt.lns.tensor import LNSTensor

# Of the metadata.
NOTE = "lns"


@dataclass(frozen=True)
class StoredCodes:
    """What a file's codes are.

    Attributes:
        form: of all of them.
        shapes: by the name of a weight.
    """

    form: LNSFormat
    shapes: Mapping[str, torch.Size]

    def read(
        self,
        name: str,
        where: tuple[slice, ...],
        packed: Callable[[slice], Tensor],
        scales: Callable[[slice | tuple[()]], Tensor],
    ) -> Tensor:
        """The numbers of a piece of a weight, float32.

        Args:
            name: of the weight.
            where: a slice with both ends for each dimension.
            packed: reads bytes of the file.
            scales: the same of scales.

        Raises:
            FormatError: they are not what the note says.
        """
        rows, inside, tail = where[0], where[1:], self.shapes[name][1:]
        count, strides = rows.stop - rows.start, contiguous_stride(tail)
        each = packed_size(tail.numel(), self.form.bits)
        start = sum(part.start * step for part, step in zip(inside, strides, strict=True))
        first, columns, length = 0, tail.numel(), count * each
        if count == 1:
            # A row may be a whole expert: of one alone, no more than from the piece's first entry
            # to its last, and from where a group of codes begins, since there a byte does.
            stop = 1 + sum((p.stop - 1) * step for p, step in zip(inside, strides, strict=True))
            group, _ = group_of(self.form.bits)
            first = start - start % group
            columns, length = stop - first, packed_size(stop - first, self.form.bits)
        begin = rows.start * each + packed_size(first, self.form.bits)
        found = packed(slice(begin, begin + length))
        own = scales(rows if self.form.scale == "row" else ())
        shape = torch.Size((count, columns))
        flat = restored(found, own, self.form, shape, torch.float32, name).dequantize()
        lengths = (part.stop - part.start for part in where)
        return flat.as_strided(tuple(lengths), (columns, *strides), start - first)


def note_of(weights: Mapping[str, object], form: LNSFormat) -> dict[str, str]:
    """The metadata of a file with these weights; names of those in numbers are left out."""
    shapes = {name: list(w.shape) for name, w in weights.items() if isinstance(w, LNSTensor)}
    return {NOTE: json.dumps({"format": asdict(form), "shapes": shapes})}


def codes_noted(metadata: Mapping[str, str]) -> StoredCodes | None:
    """What the metadata of a file say of its codes; None if they say nothing.

    Raises:
        FormatError: this version cannot read what they say.
    """
    if NOTE not in metadata:
        return None
    try:
        said = json.loads(metadata[NOTE])
        form = LNSFormat(**said["format"])
        shapes = {str(name): torch.Size(shape) for name, shape in said["shapes"].items()}
        if any(len(shape) < 2 or min(shape) < 0 for shape in shapes.values()):
            raise ValueError("a weight in codes has two dimensions or more")
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
        raise FormatError(
            f"What the file notes of its codes cannot be read: {one_line(error)}. It is damaged, "
            "or of a later hf_relopt: pip install -U hf_relopt, or write it again."
        ) from error
    return StoredCodes(form, shapes)


def restored(
    packed: Tensor,
    scales: Tensor,
    form: LNSFormat,
    shape: torch.Size,
    dtype: torch.dtype,
    name: str,
) -> LNSTensor:
    """A weight in codes of the bytes and scales of a file.

    Raises:
        FormatError: they do not fit the format or the shape.
    """
    rows, columns = shape[0], shape[1:].numel()
    each = packed_size(columns, form.bits)
    expected = scale_shape(shape, form)[:1]
    if packed.dtype is not torch.uint8 or packed.numel() != rows * each:
        raise FormatError(
            f"{name} has {packed.numel():,} entries of {packed.dtype}, but in {form.name} a weight "
            f"of shape {tuple(shape)} is {rows * each:,} bytes. The file is cut off, or of another "
            "format or model."
        )
    if scales.dtype is not torch.float32 or tuple(scales.shape) != expected:
        raise FormatError(
            f"The scales of {name} are {scales.dtype} of shape {tuple(scales.shape)} in place of "
            f"float32 of shape {expected}. The file is damaged, or of another format or model."
        )
    if not bool((scales.isfinite() & (scales > 0)).all()):
        raise FormatError(f"The scales of {name} are not all positive numbers: it is damaged.")
    return LNSTensor(packed.view(rows, each), scales, form, columns, shape, dtype=dtype)
