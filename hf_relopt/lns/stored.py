"""Codes in files: bytes and scales under two names, and a note of what they are the codes of.

The note is in the file's metadata: the format, and the shape of each weight, which bytes do not
tell. With it a file can be read in pieces without its model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from hf_relopt.errors import ConfigError, FormatError
from hf_relopt.lns.format import LNSFormat
from hf_relopt.lns.packing import packed_size
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
        rows: slice,
        packed: Callable[[slice], Tensor],
        scales: Callable[[slice | tuple[()]], Tensor],
    ) -> Tensor:
        """The numbers of so many rows of a weight: float32 [rows, ...].

        Args:
            name: of the weight.
            rows: from one to another, both given.
            packed: reads bytes of the file.
            scales: the same of scales.

        Raises:
            FormatError: they are not what the note says.
        """
        whole = self.shapes[name]
        shape = torch.Size((rows.stop - rows.start, *whole[1:]))
        each = packed_size(shape[1:].numel(), self.form.bits)
        found = packed(slice(rows.start * each, rows.stop * each))
        own = scales(rows if self.form.scale == "row" else ())
        return restored(found, own, self.form, shape, torch.float32, name).dequantize()


def note_of(weights: Mapping[str, object], form: LNSFormat) -> dict[str, str]:
    """The metadata of a file with these weights; names of those in numbers are left out."""
    shapes = {name: list(w.shape) for name, w in weights.items() if isinstance(w, LNSTensor)}
    return {NOTE: json.dumps({"format": asdict(form), "shapes": shapes})}


def codes_noted(metadata: Mapping[str, str], names: Iterable[str]) -> StoredCodes | None:
    """What the metadata of a file say of its codes; None if they say nothing of one of these.

    Args:
        metadata: of the file.
        names: of weights that the file has in codes.
    """
    try:
        said = json.loads(metadata[NOTE])
        form = LNSFormat(**said["format"])
        shapes = {name: torch.Size(said["shapes"][name]) for name in names}
        if any(len(shape) < 2 or min(shape) < 0 for shape in shapes.values()):
            return None
    except (KeyError, TypeError, ValueError, ConfigError):
        return None
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
