"""What the files of a checkpoint have to contain, so that the stock Trainer can load them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy
import torch

from hf_relopt.errors import one_line

_NUMBER = (int, float, type(None))
# Fields of trainer_state.json without which nothing can be resumed, and of which kind they are.
_NEEDED: dict[str, tuple[type, ...]] = {
    "global_step": (int,),
    "max_steps": (int,),
    "log_history": (list,),
    "epoch": _NUMBER,
}
_OTHERS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(
        (
            "logging_steps",
            "eval_steps",
            "save_steps",
            "train_batch_size",
            "num_train_epochs",
            "num_input_tokens_seen",
            "total_flos",
            "best_metric",
            "best_global_step",
        ),
        _NUMBER,
    ),
    "best_model_checkpoint": (str, type(None)),
    "trial_params": (dict, type(None)),
    "stateful_callbacks": (dict, type(None)),
}


def object_problem(content: Any) -> str | None:
    """What is wrong with JSON that should be an object; None if nothing is."""
    if isinstance(content, dict):
        return None
    return f"holds {type(content).__name__} in place of an object"


def config_problem(content: Any) -> str | None:
    """What is wrong with the content of config.json; None if nothing is."""
    if fault := object_problem(content):
        return fault
    # Not at the top: loading the Trainer's modules registers our optimizers, which needs this one.
    from transformers import PretrainedConfig

    try:
        PretrainedConfig(**content)
    except Exception as error:
        return f"cannot be loaded ({one_line(error)})"
    return None


def trainer_state_problem(content: Any) -> str | None:
    """What is wrong with the content of trainer_state.json; None if nothing is."""
    if fault := object_problem(content):
        return fault
    for name, kinds in {**_NEEDED, **_OTHERS}.items():
        if name not in content:
            if name in _NEEDED:
                return f"lacks {name}"
        elif not isinstance(content[name], kinds) or isinstance(content[name], bool):
            return f"holds a {name} of type {type(content[name]).__name__}"
    if content["global_step"] < 0:
        return f"holds a global_step of {content['global_step']}"
    batch = content.get("train_batch_size")
    if batch is not None and batch < 1:
        return f"holds a train_batch_size of {batch}"
    if not all(isinstance(entry, dict) for entry in content["log_history"]):
        return "holds a log_history that is not made of objects"
    if not all(isinstance(entry.get("step"), _NUMBER) for entry in content["log_history"]):
        return "holds a log_history with a step that is no number"
    for name, states in (content.get("stateful_callbacks") or {}).items():
        for state in states if isinstance(states, list) else [states]:
            parts = [state.get("args", {}), state.get("attributes", {})] if _maps(state) else [None]
            if not all(map(_maps, parts)):
                return f"holds no state of the callback {name}"
    from transformers.trainer_callback import TrainerState

    try:
        # A field that this release of Transformers does not know.
        TrainerState(**content)
    except Exception as error:
        return f"cannot be loaded ({one_line(error)})"
    return None


def _maps(content: Any) -> bool:
    return isinstance(content, Mapping)


def weights_problem(content: Any) -> str | None:
    """What is wrong with weights, or anything else by name; None if nothing is."""
    if not _maps(content):
        return f"holds {type(content).__name__} in place of a dictionary"
    return None


def _filled_map_problem(content: Any) -> str | None:
    return weights_problem(content) or (None if content else "is empty")


def _optimizer_problem(content: Any) -> str | None:
    if fault := weights_problem(content):
        return fault
    for name, kind in (("state", dict), ("param_groups", list)):
        if name not in content:
            return f"lacks {name}"
        if not isinstance(content[name], kind):
            return f"holds {type(content[name]).__name__} as {name}"
    for group in content["param_groups"]:
        if not _maps(group) or not isinstance(group.get("params"), list):
            return "holds param_groups that do not list their weights"
    return None


def _named_optimizer_problem(content: Any) -> str | None:
    if fault := _optimizer_problem(content):
        return fault
    if not all(map(_maps, content["state"].values())):
        return "holds state of a weight that is no dictionary"
    return None


def _rng_problem(content: Any) -> str | None:
    if fault := weights_problem(content):
        return fault
    # Generators of their own, so that nothing changes here.
    trials: dict[str, Callable[[Any], Any]] = {
        "python": random.Random().setstate,
        "numpy": numpy.random.RandomState().set_state,
        "cpu": torch.Generator().set_state,
    }
    for name, set_state in trials.items():
        if name not in content:
            return f"lacks the state of {name}"
        try:
            set_state(content[name])
        except Exception as error:
            return f"holds no state of {name} ({one_line(error)})"
    return None


# What torch.save wrote: patterns of names, and what is wrong with what was saved.
PICKLES: Mapping[str, Callable[[Any], str | None]] = {
    "optimizer.pt": _optimizer_problem,
    "optimizer.bin": _named_optimizer_problem,
    "scheduler.pt": _filled_map_problem,
    "scaler.pt": weights_problem,
    "pytorch_model*.bin": weights_problem,
    "adapter_model.bin": weights_problem,
    "rng_state*.pth": _rng_problem,
}
