"""What a weight of a model is for: its role."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

ROLES = ("matrix", "embedding", "head", "conv", "lora", "vector", "scalar")

# BertForSequenceClassification, ViTForImageClassification, FSDP2's FSDPBertForQuestionAnswering.
_TASK = re.compile(r"For\w*(Classification|QuestionAnswering|MultipleChoice)$")


def role_of(
    model: nn.Module, name: str, tied: tuple[str, ...], param: Tensor, module: nn.Module
) -> str:
    """One of ROLES for a weight of ``module`` by the name and the ``tied`` ones it has there."""
    if param.dim() == 0 or param.numel() == 1:
        return "scalar"
    if ".lora_" in name or name.startswith("lora_"):
        return "lora"
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "embedding"
    if param.dim() == 1:
        return "vector"
    if any(_is_head(model, each) for each in (name, *tied)):
        return "head"
    return "conv" if isinstance(module, nn.modules.conv._ConvNd) else "matrix"


def is_vector(param: Tensor) -> bool:
    """True for biases, gains and scalars: at most one dimension is longer than one."""
    shape = param.shape
    return len(shape) < 2 or sum([size > 1 for size in shape]) <= 1


def is_for_a_task(model: nn.Module) -> bool:
    """True if the head classifies or answers questions, and so is most often new to the model."""
    return _TASK.search(type(bare(model)[0]).__name__) is not None


def bare(model: nn.Module, name: str = "") -> tuple[nn.Module, str]:
    """The model that DataParallel, DDP, torch.compile and PEFT wrap, and what it calls a weight."""
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return bare(model.module, name.removeprefix("module."))
    compiled = model._modules.get("_orig_mod")
    if compiled is not None:
        return bare(compiled, name.removeprefix("_orig_mod."))
    unwrap: Any = getattr(model, "get_base_model", None)
    base = model if unwrap is None else unwrap()
    return (model, name) if base is model else (base, name.removeprefix("base_model.model."))


def _is_head(model: nn.Module, name: str) -> bool:
    """Transformers keeps the body under ``base_model_prefix``; what lies beside it is the head."""
    inner, local = bare(model, name)
    if ".modules_to_save." in name:
        return True
    prefix = getattr(inner, "base_model_prefix", "")
    if not prefix or not hasattr(inner, prefix) or getattr(inner, prefix) is inner:
        return False
    return not local.startswith(f"{prefix}.")
