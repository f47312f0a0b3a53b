"""The doctor's options, checked before torch and transformers are loaded."""

from __future__ import annotations

import difflib
from pathlib import Path

from hf_relopt.errors import ConfigError
from hf_relopt.plans.entries import OPTIMIZERS

ITEMSIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
# What people call them, and how torch does.
DTYPES = {
    **{name: name for name in ITEMSIZES},
    "fp32": "float32", "f32": "float32", "float": "float32", "single": "float32",
    "bf16": "bfloat16", "fp16": "float16", "f16": "float16", "half": "float16",
}  # fmt: skip
# Optimizers of others, by the first part of their names, as in adamw_torch_fused.
FOREIGN = {
    "adam", "adamw", "sgd", "muon", "adafactor", "adagrad", "rmsprop", "lion", "lamb", "lars",
    "ademamix", "galore", "apollo", "lomo", "adalomo", "grokadamw", "schedule", "stable", "paged",
    "nadam", "radam", "adamax", "adadelta", "lbfgs", "sophia", "shampoo", "soap", "prodigy",
}  # fmt: skip


def look(accelerate: str | None, model: str | None, optim: str, dtype: str | None) -> None:
    """Find mistakes in the options before torch and transformers are loaded.

    Raises:
        ConfigError: an option that cannot be used.
    """
    from hf_relopt.hf.launch_files import find_launch_file

    if dtype is not None:
        dtype_named(dtype)
    if optim not in OPTIMIZERS:
        raise _unknown(optim)
    if accelerate is not None:
        find_launch_file(accelerate)
    if model is not None:
        _look_at_model(model)


def _unknown(optim: str) -> ConfigError:
    ours = ", ".join(OPTIMIZERS)
    if optim.split("_")[0].lower() not in FOREIGN:
        near = difflib.get_close_matches(optim.lower(), OPTIMIZERS, n=1)
        hint = f"Did you mean {near[0]}?" if near else "Use one of these."
        return ConfigError(f"--optim is {optim!r}; hf_relopt has {ours}. {hint}")
    hint = "In training it works as without hf_relopt."
    if optim.lower().startswith("adam"):
        hint = (
            "For torch's AdamW, use --optim adamw_torch in the Trainer. The doctor's report shows "
            "its bytes for comparison."
        )
    return ConfigError(
        f"--optim is {optim!r}, which is not an optimizer of hf_relopt. hf_relopt has {ours}. "
        f"{hint}"
    )


def _look_at_model(name: str) -> None:
    """Raise a ConfigError for a path that is not a model's folder; hub names pass."""
    path = Path(name)
    try:
        if path.is_dir():
            if (path / "config.json").is_file():
                return
            what = "a folder without a config.json"
        elif path.exists() or name.startswith(("/", "./", "../")):
            what = "a file" if path.exists() else "there is no such folder"
        else:
            return
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or str(error)
    raise ConfigError(
        f"--model is {name[:80]!r}: {what}. It takes a folder with a config.json, or a name on the "
        "hub."
    )


def dtype_named(name: str) -> str:
    """A dtype by torch's name.

    Raises:
        ConfigError: no such dtype, or not one for weights.
    """
    found = DTYPES.get(name.lower().removeprefix("torch."))
    if found is None:
        others = [short for short in DTYPES if short not in ITEMSIZES]
        raise ConfigError(
            f"--dtype is {name!r}; it takes {', '.join(ITEMSIZES)} (or {', '.join(others)})."
        )
    return found
