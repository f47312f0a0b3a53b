"""LNSConfig: how ``from_pretrained`` is told to store weights in a logarithmic number system."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from hf_relopt.errors import ConfigError, FormatError
from hf_relopt.lns.format import FORMATS, LNSFormat, format_of
from hf_relopt.lns.scale import HEADROOM, check_headroom

METHOD = "lns"
# Of the files: raised when older versions could not read them.
VERSION = 1


class LNSConfig(QuantizationConfigMixin):
    """Store a model's matrices and embeddings in codes of 8 to 16 bits, and train them so.

    ``AutoModel.from_pretrained(name, quantization_config=LNSConfig("lns8"))`` converts while it
    loads; ``save_pretrained`` writes the codes, and the config with them, so that
    ``from_pretrained`` of that folder needs no more than ``import hf_relopt``.

    Args:
        format: "lns8", "lns10", "lns12", "lns16", or a format of one's own (LNSFormat).
        skip: roles ("head", "embedding", ...), and patterns over names, that stay numbers.
        headroom: how far weights can grow when they are converted, see ``compress``.
        bits: of a format of one's own, as files have it.
        spacing: the same.
        scale: the same.
        version: of the file.

    Raises:
        ConfigError: an unknown format.
        FormatError: a file of a later version, or that contradicts itself.
    """

    def __init__(
        self,
        format: str | LNSFormat = "lns8",
        skip: Iterable[str] = (),
        *,
        headroom: float = HEADROOM,
        bits: int | None = None,
        spacing: float | None = None,
        scale: Any = None,
        version: int = VERSION,
        quant_method: str = METHOD,
    ) -> None:
        if not isinstance(version, int) or version > VERSION or quant_method != METHOD:
            raise FormatError(
                f"These weights are stored by {quant_method!r}, version {version!r}; this "
                f"hf_relopt reads {METHOD!r} up to version {VERSION}. Remedy: pip install -U "
                "hf_relopt."
            )
        self.quant_method = METHOD
        self.version = version
        form = _format(format, bits, spacing, scale)
        self.format, self.bits, self.spacing = form.name, form.bits, form.spacing
        self.scale = form.scale
        check_headroom(headroom)
        self.headroom = headroom
        self.skip = [skip] if isinstance(skip, str) else list(skip)

    def get(self, name: str, default: Any = None) -> Any:
        """A value by its name, as of the dict that a configuration holds of others."""
        return self.to_dict().get(name, default)

    @property
    def form(self) -> LNSFormat:
        """The format."""
        return LNSFormat(self.format, self.bits, self.spacing, self.scale)


def _format(name: Any, bits: Any, spacing: Any, scale: Any) -> LNSFormat:
    given = [value for value in (bits, spacing, scale) if value is not None]
    if isinstance(name, LNSFormat) or not given:
        return format_of(name)
    if not isinstance(name, str) or len(given) != 3:
        raise ConfigError(
            f"format is {name!r} with bits {bits!r}, spacing {spacing!r} and scale {scale!r}; a "
            "format of one's own has all three, as LNSFormat(name, bits, spacing, scale)."
        )
    own = LNSFormat(name, bits, spacing, scale)
    if FORMATS.get(name, own) != own:
        raise FormatError(
            f"These weights are said to be stored in {name}, with {bits} bits and a spacing of "
            f"{spacing}; {name} is {FORMATS[name]}. The file is damaged, or of another version of "
            "hf_relopt."
        )
    return own
