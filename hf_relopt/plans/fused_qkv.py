"""Which weights hold several fused matrices, and how to split them: a table of module names.

Only weights whose matrices are contiguous are listed. Weights with interleaved heads (GPT-NeoX's
and BLOOM's ``query_key_value``) cannot be split into blocks.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hf_relopt.plans.roles import bare

_QKV = ("qkv", "qkv_proj", "Wqkv", "to_qkv", "c_attn")
_GATE_UP = ("gate_up_proj", "w1w3")
# Modules that interleave heads under a name from above, unless all heads share keys and values.
_INTERLEAVED = ("CodeGenAttention", "GPTBigCodeAttention", "MiniMaxLightningAttention")


def split_of(model: nn.Module, name: str, module: nn.Module, param: Tensor) -> dict[str, Any]:
    """The options of scale "block" that split ``param``, or none if it is one matrix.

    Args:
        model: its ``config``, if it has one, says how many heads share keys and values.
        name: of the weight without parametrizations, as in ``h.0.attn.c_attn.weight``.
        module: holds the weight.
    Returns: ``scale``, ``split_dim`` and ``split_sizes``; empty if it is one matrix.
    """
    if param.dim() == 3:
        # XLNet keeps a square matrix as [in, heads, size of a head].
        square = param.shape[0] == param.shape[1] * param.shape[2]
        return {} if square else {"scale": "block"}  # one matrix for each expert
    if param.dim() != 2:
        return {}
    owner, _, own = name.rpartition(".")
    word = owner.rpartition(".")[2]
    # GPT-2's Conv1D keeps [in, out], torch's Linear [out, in].
    dim = 1 if type(module).__name__ == "Conv1D" else 0
    inputs, outputs = param.shape[1 - dim], param.shape[dim]
    sizes: int | tuple[int, ...] | None = None
    if own == "in_proj_weight" and outputs == 3 * inputs:
        sizes = 3
    elif word in _GATE_UP and outputs % 2 == 0:
        sizes = 2
    elif word in _QKV:
        sizes = _shared_heads(_config(model), inputs, outputs)
        attention = model.get_submodule(owner.rpartition(".")[0])
        if sizes is None and type(attention).__name__ not in _INTERLEAVED:
            sizes = _equal_parts(_config(model), inputs, outputs, cross=word == "c_attn")
    return {} if sizes is None else {"scale": "block", "split_dim": dim, "split_sizes": sizes}


def _config(model: nn.Module) -> Any:
    """The configuration of the text model, if there is one."""
    config = getattr(bare(model)[0], "config", None)
    text: Any = getattr(config, "get_text_config", None)
    return config if text is None else text()


def _said(config: Any, name: str, default: int | None = None) -> int | None:
    """A number that all layers have in common, or ``default``."""
    try:
        number: int | None = getattr(config, name, default)
    except RuntimeError:  # what Transformers raises where layers differ
        return default
    return number


def _shared_heads(config: Any, inputs: int, outputs: int) -> tuple[int, int, int] | None:
    """Queries, and the fewer keys and values that groups of heads share."""
    heads, shared = _said(config, "num_attention_heads"), _said(config, "num_key_value_heads")
    if not heads or not shared or shared == heads:
        return None
    size = _said(config, "head_dim") or inputs // heads
    sizes = (heads * size, shared * size, shared * size)
    return sizes if sum(sizes) == outputs else None


def _equal_parts(config: Any, inputs: int, outputs: int, *, cross: bool) -> int | None:
    """Queries, keys and values; or keys and values alone, as in GPT-2's cross-attention."""
    if outputs == 3 * inputs:
        return 3
    if outputs == 2 * inputs and cross:
        return 2
    heads = _said(config, "num_attention_heads")
    if not heads or _said(config, "num_key_value_heads", heads) != heads:
        return None
    return 3 if outputs % 3 == 0 and outputs // 3 % heads == 0 else None
