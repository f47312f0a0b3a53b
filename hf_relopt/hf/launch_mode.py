"""How a training would be launched, read from an Accelerate configuration or the environment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_relopt.errors import ConfigError, UnsupportedSetup, one_line
from hf_relopt.hf import deepspeed_config, guards
from hf_relopt.hf.launch_files import find_launch_file

_SIZES = ("dp_replicate_size", "dp_shard_size", "tp_size", "cp_size", "sp_size")
_PREFIX = "parallelism_config_"
_NAMES = {"DEEPSPEED": "DeepSpeed", "MEGATRON_LM": "Megatron-LM"}


@dataclass(frozen=True)
class Launch:
    """A launch mode, and whether steps would be exact in it.

    Attributes:
        source: the file, the shipped configuration's name, or "environment".
        mode: "one process", "DDP", "FSDP2", "HSDP", "FSDP1", "DeepSpeed", "Megatron-LM".
        processes: all of them, at least 1.
        shard_ranks: shards of each weight under FSDP2; 1: weights are not sharded.
        tensor_ranks: ranks of tensor parallelism; 1: none.
        mixed_precision: "no", "bf16", "fp16" or "fp8".
        use_cpu: the configuration asks for the CPU.
        refusal: None if exact, else the message of the UnsupportedSetup that training would raise.
    """

    source: str
    mode: str
    processes: int
    shard_ranks: int
    tensor_ranks: int
    mixed_precision: str
    use_cpu: bool
    refusal: str | None


@dataclass(frozen=True)
class _Said:
    """The settings of a source, named as in Accelerate; ``deepspeed`` is its deepspeed_config."""

    source: str
    kind: str
    processes: int | None
    fsdp_version: str
    deepspeed: Mapping[str, Any]
    sizes: Mapping[str, int] = field(default_factory=dict)
    mixed_precision: str = "no"
    use_cpu: bool = False


def from_config(name_or_file: str, processes: int | None = None) -> Launch:
    """The launch mode of ``accelerate launch --config_file``.

    Args:
        name_or_file: a YAML or JSON file as `accelerate config` writes it, DeepSpeed's own JSON,
            or one of hf_relopt.shipped.accelerate_files.
        processes: in place of the configuration's ``num_processes``, at least 1.

    Raises:
        ConfigError: no such file or name, an unreadable file, or sizes that do not fit together.
    """
    return _judge(_from_file(find_launch_file(name_or_file), name_or_file), processes)


def from_environment(processes: int | None = None) -> Launch:
    """The launch mode of this process's environment variables; without any, one process.

    Args:
        processes: in place of WORLD_SIZE, at least 1.

    Raises:
        ConfigError: variables that are not numbers, or sizes that do not fit together.
    """
    return _judge(_from_variables(os.environ, processes), processes)


def default_config() -> str | None:
    """The file that `accelerate launch` reads by default; None if there is none."""
    from accelerate.commands.config.config_args import default_config_file

    return default_config_file if os.path.isfile(default_config_file) else None


def _from_file(path: Path, source: str) -> _Said:
    from accelerate.commands.config.config_args import load_config_from_file

    try:
        config = load_config_from_file(str(path))
    # yaml, json and Accelerate's own checks raise what they like.
    except Exception as error:
        found = deepspeed_config.read(path)
        if found is not None:
            return _from_deepspeed(found, source)
        # What it says of a file without settings is about Python's None or list.
        plain = isinstance(error, (AttributeError, TypeError, UnicodeDecodeError))
        why = "it does not hold names with values" if plain else one_line(error)
        raise ConfigError(
            f"{path} is not an Accelerate configuration: {why}. Write one with "
            f"`accelerate config --config_file FILE`."
        ) from None
    fsdp = _section(config, "fsdp_config")
    count = getattr(config, "num_processes", None)
    return _Said(
        source=source,
        # SageMaker's configurations are another class, without num_processes.
        kind="of SageMaker" if count is None else _kind(config),
        # -1 is Accelerate's word for "given on the command line".
        processes=None if count is None or count == -1 else _count("num_processes", count),
        # `accelerate launch` puts fsdp_ in front of names that lack it.
        fsdp_version=str(fsdp.get("fsdp_version", fsdp.get("version", 1))),
        deepspeed=_section(config, "deepspeed_config"),
        sizes=_sizes(_section(config, "parallelism_config")),
        mixed_precision=str(config.mixed_precision or "no"),
        use_cpu=config.use_cpu is True,
    )


def _kind(config: Any) -> str:
    # Without mpirun, `accelerate launch` starts one process for MULTI_CPU, whatever it says.
    kind = config.distributed_type.value
    alone = kind == "MULTI_CPU" and not getattr(config, "mpirun_config", None)
    return "NO" if alone else kind


def _from_deepspeed(found: dict[str, Any], source: str) -> _Said:
    return _Said(
        source=source,
        kind="DEEPSPEED",
        processes=1,  # it does not say; --processes does
        fsdp_version="1",
        deepspeed={"own": found},
        mixed_precision=deepspeed_config.mixed_precision(found),
    )


def _from_variables(variables: Mapping[str, str], given: int | None) -> _Said:
    processes = given or _count("WORLD_SIZE", variables.get("WORLD_SIZE", 1))
    kind = "NO" if processes == 1 else "MULTI"
    for name in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
        if guards.is_set(f"ACCELERATE_USE_{name}", variables):
            kind = name
    deepspeed = {
        "zero_stage": variables.get("ACCELERATE_DEEPSPEED_ZERO_STAGE"),
        "deepspeed_config_file": variables.get("ACCELERATE_DEEPSPEED_CONFIG_FILE"),
    }
    sizes = {_PREFIX + size: variables.get((_PREFIX + size).upper()) for size in _SIZES}
    return _Said(
        source="environment",
        kind=kind,
        processes=processes,
        fsdp_version=variables.get("FSDP_VERSION", "1"),
        deepspeed={k: v for k, v in deepspeed.items() if v},
        sizes=_sizes({k: v for k, v in sizes.items() if v}),
        mixed_precision=variables.get("ACCELERATE_MIXED_PRECISION", "no"),
        use_cpu=guards.is_set("ACCELERATE_USE_CPU", variables),
    )


def _judge(said: _Said, given: int | None) -> Launch:
    if said.kind not in ("NO", "FSDP", *_NAMES) and not said.kind.startswith("MULTI"):
        raise ConfigError(
            f"{said.source} has distributed_type {said.kind}, with which hf_relopt was never "
            f"tested. The doctor knows NO, the MULTI_ types, FSDP, {' and '.join(_NAMES)}."
        )
    processes = given or (1 if said.kind == "NO" else said.processes)
    if processes is None:
        raise ConfigError(
            f"{said.source} does not say num_processes. Give it: --processes N, N >= 1."
        )
    if said.kind == "NO" and processes > 1:
        raise ConfigError(
            f"{said.source} has distributed_type NO, with which `accelerate launch` always starts "
            f"one process; --processes is {processes}. Leave --processes out, or set "
            "distributed_type to MULTI_GPU."
        )
    try:
        deepspeed = _deepspeed(said.deepspeed) if said.kind == "DEEPSPEED" else {}
        guards.check_declared(said.kind, said.fsdp_version, deepspeed)
        refusal = None
    except UnsupportedSetup as error:
        refusal = str(error)
    shard, tensor = (1, 1) if refusal else _parts(said, processes)
    return Launch(
        said.source,
        _mode(said, processes, shard),
        processes,
        shard,
        tensor,
        said.mixed_precision,
        said.use_cpu,
        refusal,
    )


def _mode(said: _Said, processes: int, shard_ranks: int) -> str:
    if said.kind == "FSDP":
        if said.fsdp_version.strip() != "2":
            return "FSDP1"
        return "HSDP" if said.sizes.get("dp_replicate_size", 1) > 1 else "FSDP2"
    return _NAMES.get(said.kind) or ("one process" if processes == 1 else "DDP")


def _parts(said: _Said, processes: int) -> tuple[int, int]:
    """(shards of a weight under FSDP2, ranks of tensor parallelism)."""
    total = 1
    for size in said.sizes.values():
        total *= size
    if not said.sizes or (total == 1 and said.kind != "FSDP"):
        return (processes if said.kind == "FSDP" else 1), 1
    if total != processes:
        factors = ", ".join(f"{name} {size}" for name, size in said.sizes.items())
        raise ConfigError(
            f"{said.source} has {processes} processes and a parallelism_config for {total} "
            f"({factors}); Accelerate stops when the two differ. Change one, or --processes."
        )
    # Context parallel ranks share the weights' shards, too: Accelerate's dimension dp_shard_cp.
    shard = said.sizes.get("dp_shard_size", 1) * said.sizes.get("cp_size", 1)
    if said.kind == "FSDP" and shard == 1:
        raise ConfigError(
            f"{said.source} has FSDP and a parallelism_config without ranks to shard over; "
            "Accelerate stops with an error. Set parallelism_config_dp_shard_size to 2 or more."
        )
    return (shard if said.kind == "FSDP" else 1), said.sizes.get("tp_size", 1)


def _section(config: Any, name: str) -> dict[str, Any]:
    found = getattr(config, name, None) or {}
    if not isinstance(found, dict):
        raise ConfigError(f"{name} is {found!r}; it takes names and values, one per line.")
    return found


def _sizes(config: Mapping[str, Any]) -> dict[str, int]:
    for name in config:
        if name in _SIZES:
            raise ConfigError(
                f"The parallelism_config has {name}, which `accelerate launch` silently ignores. "
                f"Write {_PREFIX}{name}."
            )
    found = {name: config.get(_PREFIX + name) for name in _SIZES}
    return {name: _count(_PREFIX + name, v) for name, v in found.items() if v is not None}


def _deepspeed(config: Mapping[str, Any]) -> dict[str, Any]:
    """DeepSpeed's own configuration: its file, or what Accelerate makes of a stage (2 if none)."""
    if "own" in config:
        return deepspeed_config.with_a_number(config["own"])
    file = config.get("deepspeed_config_file")
    if not file:
        # Any number, also as text; the plugin would stop at other words.
        stage = str(config.get("zero_stage", 2))
        return {"zero_optimization": {"stage": int(stage) if stage.isdigit() else 2}}
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"deepspeed_config_file is {file!r}, which cannot be read as JSON: {one_line(error)}. "
            "Give a path that is valid in the folder from which you launch."
        ) from None
    if not isinstance(found, dict) or not isinstance(found.get("optimizer", {}), dict):
        raise ConfigError(
            f"deepspeed_config_file is {file!r}, which is not a DeepSpeed configuration: it must "
            "be a JSON object, and so must its 'optimizer', if it has one."
        )
    return deepspeed_config.with_a_number(found)


def _count(name: str, value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if number < 1:
        raise ConfigError(f"{name} is {value!r}; it takes a whole number, 1 or more.")
    return number
