"""Codes in files: what a state dict of weights in codes looks like where no tensor subclass may be.

A weight is there under its own name as bytes, of one dimension, so that whoever does not know them
finds a wrong shape and not noise; its scales are beside it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hf_relopt.errors import FormatError, UnsupportedSetup
from hf_relopt.lns.packing import SCALES
from hf_relopt.lns.stored import restored
from hf_relopt.lns.tensor import LNSTensor, is_lns


def flattened(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with bytes and scales in the place of codes.

    Raises:
        UnsupportedSetup: a weight in codes is sharded.
    """
    found: dict[str, Tensor] = {}
    for name, value in state_dict.items():
        if isinstance(value, LNSTensor):
            found[name], found[name + SCALES] = value.packed.view(-1), value.scale
            continue
        if is_lns(value):
            raise UnsupportedSetup(
                f"{name} is stored in codes and sharded over processes, whence it cannot be saved "
                "as one file yet. Train with DDP or on one device to save it."
            )
        found[name] = value
    return found


def read_bytes_into(model: nn.Module) -> None:
    """Let ``load_state_dict`` of a model in codes take what ``flattened`` has made of one."""
    if not getattr(model, "_reads_lns_bytes", False):
        model._reads_lns_bytes = True  # type: ignore[assignment]
        model.register_load_state_dict_pre_hook(_put_together)


def _put_together(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    own = dict(module.named_parameters(remove_duplicate=False))
    for key in [name for name in state_dict if name.endswith(SCALES) and name.startswith(prefix)]:
        name = key.removesuffix(SCALES)
        param = own.get(name.removeprefix(prefix))
        if name not in state_dict or param is None:
            continue
        packed, scales = state_dict[name], state_dict.pop(key)
        if not isinstance(param, LNSTensor):
            raise FormatError(
                f"The file has {name} in codes, but the model has numbers there. Load it with "
                "from_pretrained, or compress the model first."
            )
        make = functools.partial(restored, form=param.form, shape=param.shape, dtype=param.dtype)
        state_dict[name] = make(packed, scales, name=name)
