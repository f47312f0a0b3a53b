"""Launch modes under which norms of full tensors would be wrong, refused before training starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import nn

from hf_relopt.errors import UnsupportedSetup
from hf_relopt.hf.accelerate_faults import SHARDED_STATE, TIED, UPCAST, numbers
from hf_relopt.lns.tensor import is_lns
from hf_relopt.sharding.layout import is_sharded

_LOW = (torch.bfloat16, torch.float16)
_INSTEAD = "Use FSDP2 (fsdp_version: 2), DDP (accelerate launch --multi_gpu), or a single device."


def check_arguments(args: Any) -> None:
    """Refuse launch modes that TrainingArguments or the launcher's environment ask for.

    Raises:
        UnsupportedSetup: DeepSpeed with ZeRO stage 1 or more or its own optimizer, or FSDP1.
    """
    config = getattr(getattr(args, "hf_deepspeed_config", None), "config", None)
    if isinstance(config, dict):
        _check_deepspeed_config(config)
    elif args.deepspeed or is_set("ACCELERATE_USE_DEEPSPEED"):
        stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        if not os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE"):
            _refuse_zero(int(stage) if stage.isdigit() else 2)
    if _asks_for_fsdp(args):
        version = os.environ.get("FSDP_VERSION", "")
        _refuse_fsdp1(version or _fsdp_version(getattr(args, "fsdp_plugin_args", None)))


def check_model_arguments(args: Any, model: nn.Module) -> None:
    """Refuse a launch mode that TrainingArguments or the launcher ask for, over such a model.

    For a caller that has both before there is an Accelerator, and so before anything is written.

    Raises:
        UnsupportedSetup: Accelerate's FSDP over weights in codes.
    """
    if _asks_for_fsdp(args):
        _refuse_codes(model)


def check_launch(model: nn.Module | None) -> None:
    """Refuse launch modes that Accelerate's state or the model show, when the optimizer is made.

    Args:
        model: None if it is unknown.

    Raises:
        UnsupportedSetup: ZeRO stage 1 or more, FSDP1, Megatron, or several processes that
            Accelerate treats as single ones.
    """
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    state = AcceleratorState._shared_state
    plugin = _active_plugin(state.get("deepspeed_plugins") or state.get("deepspeed_plugin"))
    if plugin is not None:
        _check_deepspeed_config(getattr(plugin, "deepspeed_config", {}) or {})
        _refuse_zero(getattr(plugin, "zero_stage", 0))
    fsdp = state.get("fsdp_plugin")
    if fsdp is not None:
        _refuse_fsdp1(str(getattr(fsdp, "fsdp_version", 1)))
    kind = PartialState._shared_state.get("distributed_type")
    if kind == DistributedType.MEGATRON_LM:
        _refuse_megatron()
    started = os.environ.get("WORLD_SIZE", "1")
    known = PartialState._shared_state.get("num_processes")
    if known == 1 and started.isdigit() and int(started) > 1:
        raise UnsupportedSetup(
            f"{started} processes were started, but Accelerate treats each as the only one, so "
            "each would train its own model. This happens with an FSDP configuration on a machine "
            "without an accelerator. Use torchrun there, or a configuration of type MULTI_GPU "
            "with use_cpu: true (DDP). A configuration of type MULTI_CPU starts a single process."
        )
    if model is not None:
        check_model(model)


def check_accelerate(model: nn.Module | None, *, resumes: bool, rounds: bool = False) -> None:
    """Refuse a run that the installed Accelerate would get wrong under FSDP2.

    Args:
        model: None if it is unknown.
        resumes: a checkpoint is about to be loaded.
        rounds: the user set how low-precision weights are rounded, so they are intended.

    Raises:
        UnsupportedSetup: the fault, and what to do.
    """
    from accelerate import __version__
    from accelerate.state import AcceleratorState

    plugin = AcceleratorState._shared_state.get("fsdp_plugin")
    if plugin is None:
        return
    if model is not None:
        _refuse_codes(model)
    versions = numbers(__version__), numbers(torch.__version__)
    params = list(model.parameters()) if model is not None else []
    mixed = str(AcceleratorState._shared_state.get("_mixed_precision", "no"))
    low = any(param.requires_grad and param.dtype in _LOW for param in params)
    meets = {
        UPCAST: mixed != "no" and low and not rounds,
        TIED: _has_tied_embeddings(model),
        SHARDED_STATE: resumes and "SHARDED" in str(plugin.state_dict_type),
    }
    for fault, is_met in meets.items():
        if is_met and fault.is_in(*versions):
            raise UnsupportedSetup(f"accelerate {__version__}: {fault.what} {fault.do}")


def _asks_for_fsdp(args: Any) -> bool:
    return bool(args.fsdp) or is_set("ACCELERATE_USE_FSDP")


def _refuse_codes(model: nn.Module) -> None:
    if any(map(is_lns, model.parameters())):
        raise UnsupportedSetup(
            "Accelerate's FSDP2 cannot shard weights in codes: it finds an optimizer's weights "
            "again by their addresses, which codes have not. Use DDP, whose processes hold codes "
            "of 1 to 2 bytes per weight, or torch's fully_shard(model) before making the optimizer."
        )


def _has_tied_embeddings(model: nn.Module | None) -> bool:
    pair = [getattr(model, f"get_{side}_embeddings", None) for side in ("input", "output")]
    if None in pair:
        return False
    first, last = (getattr(get(), "weight", None) for get in pair if get is not None)
    return first is not None and first is last


def check_declared(kind: str, fsdp_version: str, deepspeed: dict[str, Any]) -> None:
    """Refuse the launch mode of a launcher's configuration, before anything is launched.

    Args:
        kind: Accelerate's DistributedType, as written in its files: "FSDP", "MULTI_GPU", ...
        fsdp_version: "1" or "2"; looked at for kind "FSDP".
        deepspeed: DeepSpeed's own configuration; looked at for kind "DEEPSPEED".

    Raises:
        UnsupportedSetup: ZeRO stage 1 or more, DeepSpeed's own optimizer, FSDP1, or Megatron.
    """
    if kind == "DEEPSPEED":
        _check_deepspeed_config(deepspeed)
    if kind == "FSDP":
        _refuse_fsdp1(fsdp_version)
    if kind == "MEGATRON_LM":
        _refuse_megatron()


def check_model(model: nn.Module) -> None:
    """Refuse a model that FSDP1 has wrapped or flattened."""
    for module in model.modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            _refuse_fsdp1("1")
    for param in model.parameters():
        if getattr(param, "_fsdp_flattened", False):
            _refuse_fsdp1("1")


def check_replicas(model: nn.Module) -> None:
    """Refuse a model of which each process would train its own copy.

    Raises:
        UnsupportedSetup: Accelerate runs plain data parallelism, and nothing averages gradients.
    """
    from accelerate.state import AcceleratorState, PartialState

    kind = str(AcceleratorState._shared_state.get("distributed_type", ""))
    processes = PartialState._shared_state.get("num_processes", 1)
    together = any(isinstance(m, nn.parallel.DistributedDataParallel) for m in model.modules())
    if "MULTI_" not in kind or processes < 2 or together:
        return
    if any(is_sharded(param) for param in model.parameters()):
        return
    raise UnsupportedSetup(
        f"{processes} processes are about to train, but the model is not wrapped in DDP: each "
        "would train its own copy. This happens after trainer.evaluate() or predict() before "
        "train(). Use eval_on_start=True, or another Trainer for the evaluation."
    )


def every_process_has_all_weights(model: nn.Module) -> bool:
    """True under DDP: several processes without sharded weights."""
    from accelerate.state import AcceleratorState, PartialState

    state = PartialState._shared_state
    kind = str(getattr(state.get("distributed_type"), "value", "NO"))
    plugin = AcceleratorState._shared_state.get("fsdp_plugin")
    # Accelerate calls it DDP, too, where Transformers sharded the model for tensor parallelism.
    is_full = plugin is None and (getattr(model, "_tp_size", None) or 1) == 1
    return kind.startswith("MULTI_") and state.get("num_processes", 1) > 1 and is_full


def is_set(name: str, variables: Mapping[str, str] = os.environ) -> bool:
    """Whether an environment variable switches something on."""
    return variables.get(name, "").lower() in ("true", "1", "yes")


def _check_deepspeed_config(config: dict[str, Any]) -> None:
    own = config.get("optimizer")
    if own is not None:
        kind = own.get("type", "?") if isinstance(own, dict) else own
        raise UnsupportedSetup(
            f"The DeepSpeed configuration has its own optimizer ({kind}), which would replace the "
            f"one that --optim names. Remove it there. {_INSTEAD}"
        )
    zero = config.get("zero_optimization", {})
    # DeepSpeed's old form is a bool that means stage 1.
    stage = zero.get("stage", 0) if isinstance(zero, dict) else int(bool(zero))
    _refuse_zero(stage if isinstance(stage, int) else 0)


def _refuse_zero(stage: int) -> None:
    if stage >= 1:
        raise UnsupportedSetup(
            f"DeepSpeed ZeRO stage {stage} flattens all weights into one buffer and shards it "
            f"anywhere, so per-tensor norms are lost and every step would be wrong. {_INSTEAD}"
        )


def _refuse_fsdp1(version: str) -> None:
    if version.strip() == "2":
        return
    raise UnsupportedSetup(
        "FSDP1 flattens weights, so per-tensor norms are lost and every step would be silently "
        f"wrong. {_INSTEAD}"
    )


def _refuse_megatron() -> NoReturn:
    raise UnsupportedSetup(
        f"Megatron-LM shards and fuses weights, so per-tensor norms are lost. {_INSTEAD}"
    )


def _fsdp_version(plugin_args: Any) -> str:
    return str((plugin_args or {}).get("fsdp_version", 1)) if isinstance(plugin_args, dict) else "1"


def _active_plugin(plugins: Any) -> Any:
    """Accelerate keeps one DeepSpeed plugin, or a dict of them of which one is selected."""
    if not isinstance(plugins, dict):
        return plugins
    chosen = [p for p in plugins.values() if getattr(p, "selected", False)]
    return (chosen or list(plugins.values()))[0]
