"""compress and decompress: a model's weights as codes, and as numbers again."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from torch import nn

from hf_relopt.hf.lns_files import read_bytes_into
from hf_relopt.lns.format import LNSFormat, format_of
from hf_relopt.lns.scale import HEADROOM
from hf_relopt.nn.compression import convert, restore

Model = TypeVar("Model", bound=nn.Module)


def compress(
    model: Model,
    format: str | LNSFormat = "lns8",
    *,
    skip: Iterable[str] = (),
    headroom: float = HEADROOM,
) -> Model:
    """Store a model's matrices and embeddings in codes of 8 to 16 bits, in place.

    IntegerMadam trains such weights as they are. Norms and biases stay numbers. Optimizers that
    were made before hold weights that the model does not have any more: make them afterwards. Of a
    Transformers model ``save_pretrained`` writes the codes, and ``from_pretrained`` loads them.

    Args:
        model: any torch module, with its weights loaded and not sharded yet.
        format: "lns8", "lns10", "lns12", "lns16", or an LNSFormat.
        skip: roles ("head", "embedding", ...) and patterns over names that stay numbers.
        headroom: how far weights can grow: the scale of a row is at least so many times its root
            mean square, and its largest entry. 5 suits training from scratch, as Madam's p_scale.

    Returns: the model.

    Raises:
        ConfigError: an unknown format, nothing to convert, or a weight that cannot be; nothing is
            changed then.
    """
    form, skip = format_of(format), [skip] if isinstance(skip, str) else list(skip)
    convert(model, form, skip, headroom)
    for part in _of_transformers(model):
        from hf_relopt.hf.lns_config import LNSConfig
        from hf_relopt.hf.lns_quantizer import attach

        attach(part, LNSConfig(form, skip, headroom=headroom))
    read_bytes_into(model)
    return model


def decompress(model: Model) -> Model:
    """Make numbers of all weights in codes, in place; return the model."""
    restore(model)
    for part in _of_transformers(model):
        from hf_relopt.hf.lns_quantizer import detach

        detach(part)
    return model


def _of_transformers(model: nn.Module) -> list[Any]:
    """The models of Transformers in it, itself perhaps: each can be saved alone."""
    modeling = sys.modules.get("transformers.modeling_utils")
    if modeling is None:
        return []
    return [part for part in model.modules() if isinstance(part, modeling.PreTrainedModel)]
