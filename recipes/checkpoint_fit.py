"""Whether a checkpoint fits the model and the optimizer that resume from it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from recipe_arguments import RELATIVE_OPTIMIZERS
from safetensors import safe_open
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from hf_relopt.entries import rule_of_name
from hf_relopt.errors import ConfigError

REMEDY = "Pass the arguments it was trained with, or start without it."


def require_fit(checkpoint: Path, model: torch.nn.Module, optimizer: str) -> None:
    """Check names and shapes only, which is cheap for a large model, too.

    Args:
        checkpoint: a complete checkpoint of a Trainer.
        model: that is to get its weights.
        optimizer: the name that is to get its state, as in "fromage".

    Raises:
        ConfigError: another model's weights, or the state of another optimizer.
    """
    require_same_weights(checkpoint, model)
    if not (checkpoint / "optimizer.pt").is_file():
        return
    rules = saved_rules(checkpoint / "optimizer.pt")
    # A preset's name is not in its groups; their directions are compared when they are loaded.
    rule = rule_of_name(optimizer)
    fits = rule in rules if optimizer in RELATIVE_OPTIMIZERS else not rules
    if not fits:
        trained_with = " and ".join(sorted(rules)) or "neither fromage nor madam"
        raise ConfigError(
            f"{checkpoint} was trained with {trained_with}, not with {optimizer}. {REMEDY}"
        )


def require_same_weights(checkpoint: Path, model: torch.nn.Module) -> None:
    """Raise a ConfigError if a weight has another shape, or if there are more or fewer of them."""
    here = model.state_dict()
    size = sum({weight.data_ptr(): weight.numel() for weight in here.values()}.values())
    saved_size, counted = 0, set()
    for file in checkpoint.glob("model*.safetensors"):
        with safe_open(file, framework="pt") as saved:
            for name in saved.keys():  # noqa: SIM118  (not a dict)
                shape = saved.get_slice(name).get_shape()
                # Under FSDP2 a tied weight is saved once for each of its names.
                place = here[name].data_ptr() if name in here else name
                saved_size += 0 if place in counted else math.prod(shape)
                counted.add(place)
                # A name that is not here proves nothing: some models are saved under old names.
                if name in here and shape != list(here[name].shape):
                    raise ConfigError(
                        f"{checkpoint} is a checkpoint of another model: its weight {name} has "
                        f"the shape {shape}, this model's has {list(here[name].shape)}. {REMEDY}"
                    )
    if saved_size and saved_size != size:
        raise ConfigError(
            f"{checkpoint} is a checkpoint of another model: it has {saved_size:,} parameters, "
            f"this model {size:,}. {REMEDY}"
        )


def saved_names(checkpoint: Path) -> set[str]:
    """Names of the weights in a checkpoint."""
    names: set[str] = set()
    for file in checkpoint.glob("model*.safetensors"):
        with safe_open(file, framework="pt") as saved:
            names.update(saved.keys())
    return names


class RenamedWeights(TrainerCallback):
    """Loads what Trainer leaves out when it resumes.

    transformers 5.4 saves BERT's norms as gamma and beta, which from_pretrained understands and
    Trainer does not: it keeps the norms it began with, and only warns of missing keys.

    Args:
        checkpoint: the one that Trainer resumes from.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **_: Any,
    ) -> None:
        """After Trainer has loaded the checkpoint, before the first step."""
        if model is not None and saved_names(self.checkpoint) - model.state_dict().keys():
            whole = type(model).from_pretrained(self.checkpoint)
            model.load_state_dict(whole.state_dict())


def saved_rules(file: Path) -> set[str]:
    """Rules named in a saved optimizer's groups; ours name one in each, torch's own none."""
    # mmap leaves the state on disk: only the groups are read.
    saved = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    return {group["rule"] for group in saved["param_groups"] if "rule" in group}
