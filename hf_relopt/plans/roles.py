"""The role of a weight: what it is for in its model.

The first line that fits decides.

    scalar     one element
    lora       adapters of PEFT, LoRA or another kind (also parameters with ``.lora_`` in the name)
    vector     at most one dimension longer than one; biases of any shape, as of experts, gates or
               relative positions (also in an nn.Embedding, as T5's); elementwise scales: ``A_log``,
               ``D``, ``scale``; PEFT's trainable tokens
    embedding  weights of nn.Embedding; tables of vectors that a module holds itself: positions,
               queries, learned tokens
    head       weights outside the base model of a Transformers model: LM heads, task heads
    conv       kernels of convolutions
    matrix     everything else

Weight norm and spectral norm (torch's old and new kind) store a weight in other tensors. These have
the role and the name of the weight they make, also for overrides: ``conv.weight`` for
``conv.parametrizations.weight.original1``. The norms that weight norm stores are vectors.

A parameter that is no layer's ``weight`` gets its role from the words of its name, since its shape
may mean anything: [8, 64] is a bias of eight experts, or eight learned queries, or a matrix.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

ROLES = ("matrix", "embedding", "head", "conv", "lora", "vector", "scalar")

# BertForSequenceClassification, ViTForImageClassification, FSDP2's FSDPBertForQuestionAnswering.
_TASK = re.compile(r"For\w*(Classification|QuestionAnswering|MultipleChoice)$")
_LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding, nn.EmbeddingBag)
# Words of names, as in down_proj_bias, relative_position_bias_table, pos_bias_u.
_BIAS = {"bias", "biases"}
_SCALES = {"log", "scale", "scales", "gamma", "gain", "decay", "mix"}
# b1 and w2_b; a capital B alone is a matrix of a state-space model.
_B = re.compile(r"b\d*|B\d+")
_MATRIX = {"weight", "proj", "projection", "kernel"}
_TABLE = {"token", "tokens", "embed", "embeds", "embedding", "embeddings", "emb", "embs"}
_TABLE |= {"pos", "position", "positions", "positional", "query", "queries", "latent", "latents"}
_TABLE |= {"prompt", "prompts", "codebook", "codebooks", "codevectors"}
# Where PEFT's classes live: peft.tuners.ia3.layer. What they adapt is one of these to them.
_TUNER = re.compile(r"peft\.tuners\.(\w+)")
TOKENS = "trainable_tokens"
_ADAPTED = {"base_layer", "base_model", "model"}
# What attentions call their number of heads.
_HEADS = ("num_heads", "n_heads", "num_attention_heads")


def role_of(
    model: nn.Module, name: str, tied: tuple[str, ...], param: Tensor, module: nn.Module
) -> str:
    """One of ROLES for a weight of ``module``, from its ``name`` and its ``tied`` names.

    Args:
        module: the one that :func:`home_of` gives.
    """
    own, stored = (each.rpartition(".")[2] for each in (home_of(model, name), name))
    is_weight = own == "weight" and (isinstance(module, _LAYERS) or _is_conv1d(module))
    words = set(own.lower().split("_"))
    if param.dim() == 0 or param.numel() == 1:
        return "scalar"
    adapter = adapter_of(model, name)
    if adapter is not None:
        # A few rows of a table, which have no norm of their own yet: see token_table.
        return "vector" if adapter == TOKENS else "lora"
    # A Linear with one output is a head or a matrix still.
    if param.dim() == 1 or (is_vector(param) and not (is_weight and stored == "weight")):
        return "vector"
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "vector" if _holds_biases(model, name, param) else "embedding"
    if not is_weight and (_is_bias(own, param, module) or _scales(own, words)):
        return "vector"
    if not is_weight and _is_table(own, words, param, module):
        return "embedding"
    if any(_is_head(model, each) for each in (name, *tied)):
        return "head"
    return "conv" if isinstance(module, nn.modules.conv._ConvNd) else "matrix"


def is_vector(param: Tensor) -> bool:
    """True for biases, norm weights and scalars: at most one dimension is longer than one."""
    shape = param.shape
    return len(shape) < 2 or sum([size > 1 for size in shape]) <= 1


def steps_as_vector(group: Mapping[str, Any], param: Tensor) -> bool:
    """True for a weight that is stepped as a vector: by its shape, or by its role in the plan."""
    return group.get("role") == "vector" or is_vector(param)


def role_in_group(group: Mapping[str, Any], param: Tensor) -> str:
    """A weight's role in its param group; by its shape where nobody has planned."""
    role: str | None = group.get("role")
    if role is not None:
        return role
    if is_lazy(param):
        return "lazy"
    if param.numel() == 1:
        return "scalar"
    return "vector" if is_vector(param) else "matrix"


def home_of(model: nn.Module, name: str) -> str:
    """The name that a weight would have without parametrizations; most often its own."""
    owner, _, own = name.rpartition(".")
    parametrized = re.fullmatch(r"(|.*\.)parametrizations\.(\w+)\.original\d*", name)
    if parametrized:
        return f"{parametrized[1]}{parametrized[2]}"
    # torch.nn.utils.weight_norm and spectral_norm leave what they make as a plain attribute.
    plain = re.sub("_(g|v|orig)$", "", own)
    module = model.get_submodule(owner)
    made = plain != own and plain not in module._parameters
    if made and isinstance(getattr(module, plain, None), Tensor):
        return f"{owner}.{plain}" if owner else plain
    return name


def adapter_of(model: nn.Module, name: str) -> str | None:
    """PEFT's name for the adapter that a weight belongs to, as in "ia3"; None without one."""
    kind = None
    for module, word in _way_to(model, name):
        tuner = _tuner(module)
        if tuner is not None:
            kind = None if word in _ADAPTED else tuner
    by_name = ".lora_" in name or name.startswith("lora_")
    return "lora" if kind is None and by_name else kind


def token_table(model: nn.Module, name: str) -> Tensor | None:
    """The table whose rows PEFT's trainable tokens replace; None for other weights."""
    table = None
    if adapter_of(model, name) == TOKENS:
        for module, _ in _way_to(model, name):
            unwrap: Any = getattr(module, "get_base_layer", None)
            if unwrap is not None and _tuner(module) == TOKENS:
                table = getattr(unwrap(), "weight", None)
    return table if isinstance(table, Tensor) else None


def adapted_part(model: nn.Module, name: str) -> nn.Module | None:
    """The adapted model (PEFT's) that a weight belongs to, or None."""
    found = None
    for module, _ in _way_to(model, name):
        if isinstance(getattr(module, "peft_config", None), Mapping):
            found = module
    return found


def is_for_a_task(model: nn.Module) -> bool:
    """True if the head is a task head, which is most often new: for classes or for answers."""
    return _TASK.search(type(bare(model)[0]).__name__) is not None


def bare(model: nn.Module, name: str = "") -> tuple[nn.Module, str]:
    """The model inside DataParallel, DDP, torch.compile and PEFT, and the weight's name in it."""
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return bare(model.module, name.removeprefix("module."))
    compiled = model._modules.get("_orig_mod")
    if compiled is not None:
        return bare(compiled, name.removeprefix("_orig_mod."))
    unwrap: Any = getattr(model, "get_base_model", None)
    base = model if unwrap is None else unwrap()
    return (model, name) if base is model else (base, name.removeprefix("base_model.model."))


def _is_conv1d(module: nn.Module) -> bool:
    """Transformers' Conv1D is a Linear whose weight is [in, out]."""
    return type(module).__name__ == "Conv1D"


def _is_bias(own: str, param: Tensor, module: nn.Module) -> bool:
    """True for biases by their name, and for biases of experts also where they are called b."""
    parts = own.split("_")
    if any(part.lower().rstrip("0123456789") in _BIAS for part in parts):
        return True
    if param.dim() != 2 or "lora" in own.lower():
        return False
    # [experts, outputs] beside the experts' own weights [experts, inputs, outputs].
    experts = [
        name
        for name, other in module._parameters.items()
        if other is not None
        and other.dim() == 3
        and other.shape[0] == param.shape[0]
        and param.shape[1] in other.shape[1:]
    ]
    named_after = any(re.fullmatch(rf"{re.escape(name)}_?b(ias)?", own) for name in experts)
    named_b = any(_B.fullmatch(part) for part in parts) and not _is_second_factor(parts, module)
    return bool(experts) and (named_after or named_b)


def _is_second_factor(parts: list[str], module: nn.Module) -> bool:
    """True where an ``a`` lies beside this ``b``: two factors of one matrix."""
    first = [re.sub(r"^b(\d*)$", r"a\1", re.sub(r"^B(\d+)$", r"A\1", part)) for part in parts]
    return "_".join(first) in module._parameters


def _holds_biases(model: nn.Module, name: str, param: Tensor) -> bool:
    """True for an nn.Embedding of attention biases by relative position, one for each head.

    It says bias in its name, as T5's ``relative_attention_bias``, or relative, as WavLM's
    ``rel_attn_embed``, which is as wide as its attention has heads.
    """
    owner, _, own = home_of(model, name).rpartition(".")[0].rpartition(".")
    words = set(own.lower().split("_"))
    if words & _BIAS:
        return not words & {"embed", "embeds", "embedding", "embeddings", "emb"}
    attention = model.get_submodule(owner)
    heads = {getattr(attention, each, None) for each in _HEADS}
    return bool(words & {"rel", "relative"}) and param.shape[-1] in heads


def _scales(own: str, words: set[str]) -> bool:
    """True for a state-space model's diagonal matrices: ``A_log`` and ``D`` act elementwise."""
    return own in ("D", "Ds") or (bool(words & _SCALES) and not words & _MATRIX)


def _is_table(own: str, words: set[str], param: Tensor, module: nn.Module) -> bool:
    """True for tables of vectors that are looked up or added, and never multiply an input.

    A dimension of one beside two longer ones is for broadcasting: positions [1, n, d].
    """
    if own == "weight":
        return "Embedding" in type(module).__name__
    if words & _MATRIX or isinstance(module, _LAYERS):
        return False
    spread = param.dim() > 2 and 1 in param.shape
    return spread or bool(words & _TABLE)


def _way_to(model: nn.Module, name: str) -> Iterator[tuple[nn.Module, str]]:
    """The modules around a weight, the outermost first, each with the next part of the name."""
    module: nn.Module | None = model
    for word in name.split("."):
        if module is None:
            return
        yield module, word
        module = module._modules.get(word)


def _tuner(module: nn.Module) -> str | None:
    """The kind of adapter that a class of PEFT is for; "custom" for classes derived elsewhere."""
    for cls in type(module).__mro__:
        found = _TUNER.match(cls.__module__)
        if found:
            return "custom" if found[1] in ("tuners_utils", "lycoris_utils") else found[1]
    return None


def _is_head(model: nn.Module, name: str) -> bool:
    """True outside ``base_model_prefix``, where Transformers keeps the base model: the head."""
    inner, local = bare(model, name)
    if ".modules_to_save." in name:
        return True
    prefix = getattr(inner, "base_model_prefix", "")
    if not prefix or not hasattr(inner, prefix) or getattr(inner, prefix) is inner:
        return False
    return not local.startswith(f"{prefix}.")
