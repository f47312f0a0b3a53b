"""A model without its weights: names, shapes and modules, without their memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_relopt.errors import ConfigError, one_line


def build_on_meta(name_or_path: str) -> Any:
    """The model of a folder or of the hub on the meta device; no weight is read or made.

    Args:
        name_or_path: a folder with a config.json, or a name on the hub. Code that lies beside the
            model is not run.

    Returns:
        A PreTrainedModel whose parameters are all on the meta device: a causal language model if
        the configuration names one, else the class that it names, else the bare body. That of a
        folder without weights has no source, as a model that is trained from scratch.

    Raises:
        ConfigError: no configuration is found, or no model can be built from it.
    """
    import torch
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    # A missing file, a name that is none, no network, an unknown type, a broken config.json: each
    # is another class, and some come from libraries below.
    except Exception as error:
        raise ConfigError(
            f"--model is {name_or_path!r}, but its configuration could not be loaded: "
            f"{one_line(error)}. It takes a folder with a config.json, or a name on the hub, "
            "which needs the network or a copy in the hub's cache."
        ) from None
    if not may_have_weights(name_or_path):
        config._name_or_path = ""
    name = (config.architectures or [""])[0]
    try:
        with torch.device("meta"):
            own = getattr(transformers, name, None)
            if "CausalLM" in name:
                return transformers.AutoModelForCausalLM.from_config(config)
            if isinstance(own, type) and issubclass(own, transformers.PreTrainedModel):
                return own(config)
            return transformers.AutoModel.from_config(config)
    except Exception as error:
        raise ConfigError(
            f"--model is {name_or_path!r}, but no model could be built from its configuration "
            f"({name or config.model_type}): {one_line(error)}. Give a model of a type that is "
            "built into transformers."
        ) from None


def may_have_weights(name_or_path: str) -> bool:
    """Whether a model comes with weights, judged by file names; True for models on the hub."""
    folder = Path(name_or_path)
    if not folder.is_dir():
        return True
    patterns = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*", "*.gguf")
    return any(any(folder.glob(pattern)) for pattern in patterns)


def dtype_of(model: Any) -> str:
    """The dtype that the model's configuration names: "float32" if it names none."""
    return str(getattr(model.config, "dtype", None) or "float32").removeprefix("torch.")
