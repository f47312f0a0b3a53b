"""`hf-relopt doctor`: is a run exact, what is its plan, how much memory; trains nothing."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from hf_relopt.cli.doctor_options import ITEMSIZES, dtype_named, look
from hf_relopt.cli.doctor_report import lines, totals
from hf_relopt.errors import ConfigError

if TYPE_CHECKING:
    from hf_relopt.hf.launch_mode import Launch
    from hf_relopt.hf.optim_args import OptimArgs
    from hf_relopt.plans.plan import Plan

EXACT, REFUSED, USAGE = 0, 1, 2
# Memory of the devices that a model like the one in question is to fit on, GB.
DEVICE_SIZES = (24, 80)
Facts = dict[str, Any]


def run_doctor(
    *,
    accelerate: str | None = None,
    model: str | None = None,
    optim: str = "fromage",
    optim_args: str | None = None,
    processes: int | None = None,
    dtype: str | None = None,
    as_json: bool = False,
) -> int:
    """Print what is found; arguments are the command's options.

    Returns:
        0 exact, 1 refused, 2 a mistake in the options or the files (one message on stderr).
    """
    try:
        look(accelerate, model, optim, dtype)
        facts = examine(accelerate, model, optim, optim_args, processes, dtype)
    except ConfigError as error:
        print(f"hf-relopt doctor: {error}", file=sys.stderr)
        return USAGE
    if as_json:
        print(json.dumps(facts, indent=2))
    elif sys.stdout.isatty():
        from hf_relopt.cli.doctor_terminal import show

        show(facts)
    else:
        print("\n".join(lines(facts)))
    return EXACT if facts["verdict"] == "exact" else REFUSED


def examine(
    accelerate: str | None,
    model: str | None,
    optim: str,
    optim_args: str | None,
    processes: int | None,
    dtype: str | None,
) -> Facts:
    """All facts as one JSON object; its keys are in docs/doctor.md.

    Raises:
        ConfigError: an option or a file that cannot be used.
    """
    from hf_relopt.hf import deepspeed_config, launch_mode
    from hf_relopt.hf import optim_args as optim_args_text
    from hf_relopt.optim.create import check_name

    look(accelerate, model, optim, dtype)
    dtype = None if dtype is None else dtype_named(dtype)
    check_name(optim)
    said = optim_args_text.parse(optim, optim_args)
    if accelerate is None:
        launch = launch_mode.from_environment(processes)
    else:
        launch = launch_mode.from_config(accelerate, processes)
    notes = _launch_notes(launch)
    if accelerate is not None and processes is None and deepspeed_config.is_own(accelerate):
        notes.append("DeepSpeed's own file does not set the number of processes; pass --processes.")
    facts: Facts = {
        "verdict": "exact" if launch.refusal is None else "refused",
        "reason": launch.refusal,
        "launch": {
            "source": launch.source,
            "mode": launch.mode,
            "processes": launch.processes,
            "shard_ranks": launch.shard_ranks,
            "tensor_parallel_ranks": launch.tensor_ranks,
            "mixed_precision": launch.mixed_precision,
            "use_cpu": launch.use_cpu,
        },
        "optim": optim,
        "optim_args": optim_args or "",
        "plan": None,
        "memory": None,
    }
    if model is None:
        bits = 8 if optim == "integer_madam" else None
        facts["memory"] = _memory(facts, said, _dtype(launch, dtype, "float32", notes), bits)
    else:
        _add_model(facts, model, said, launch, dtype, notes)
    facts.update(_installation(launch))
    return {**facts, "notes": notes}


def _add_model(
    facts: Facts, model: str, said: OptimArgs, launch: Launch, dtype: str | None, notes: list[str]
) -> None:
    from dataclasses import asdict

    from hf_relopt.hf.meta_model import build_on_meta, dtype_of, may_have_weights
    from hf_relopt.optim.create import plan
    from hf_relopt.optim.footprint import footprint

    built = build_on_meta(model)
    bits = _store_in_codes(built, facts["optim"], notes)
    chosen = plan(built, facts["optim"], said.lr, overrides=said.overrides, **said.options)
    facts["plan"] = _plan_facts(model, built, chosen, said.lr is None)
    facts["plan"]["weights"] = "not read" if may_have_weights(model) else "not there"
    own = dtype_of(built)
    if bits is None and getattr(built.config, "quantization_config", None) is not None:
        notes.append("The weights are quantized; the bytes are those of unquantized weights.")
    chosen_dtype = _dtype(launch, dtype, own if own in ITEMSIZES else "float32", notes)
    itemsize = ITEMSIZES[chosen_dtype]
    if launch.refusal is not None:
        notes.append("This launch is refused; the bytes per rank are those of DDP or one device.")
    taken = footprint(built.parameters(), chosen, itemsize=itemsize, ranks=launch.shard_ranks)
    facts["memory"] = {**_memory(facts, said, chosen_dtype, bits), "per_rank": asdict(taken)}
    facts["memory"]["fits"] = _fits(asdict(taken), facts["plan"]["model_parameters"])


def _store_in_codes(built: Any, optim: str, notes: list[str]) -> int | None:
    """Store weights as the folder does, or as integer_madam needs them; return their bits."""
    from hf_relopt.nn.compression import convert_shapes

    config = getattr(built.config, "quantization_config", None)
    given = config if isinstance(config, dict) else config.to_dict() if config else {}
    if given.get("quant_method") == "lns":
        from hf_relopt.hf.lns_config import LNSConfig

        own = LNSConfig.from_dict(given)
        convert_shapes(built, own.form, own.skip)
        return own.form.bits
    if optim == "integer_madam" and not given:
        convert_shapes(built)
        notes.append(
            "The weights are numbers; plan and bytes are those of the model in lns8. integer_madam "
            "needs it so: hf-relopt compress, LNSConfig, or RelOptTrainer(lns_format=...)."
        )
        return 8
    return None


def _plan_facts(name: str, model: Any, chosen: Plan, assumed: bool) -> Facts:
    from hf_relopt.plans.plan import followed_lr, follows

    rows = [
        {
            "role": group["role"],
            "rule": group["rule"],
            "follows": follows(group["params"][0][1], group),
            "lr": followed_lr(group),
            "tensors": len(group["params"]),
            "parameters": sum(param.numel() for _, param in group["params"]),
            "first": group["params"][0][0],
        }
        for group in chosen.groups
    ]
    return {
        "model": name,
        "class": type(model).__name__,
        "model_parameters": sum(param.numel() for param in model.parameters()),
        "tensors": sum(row["tensors"] for row in rows),
        "parameters": sum(row["parameters"] for row in rows),
        "skipped": [entry.name for entry in chosen.skipped],
        "groups": rows,
        "lr_assumed": assumed,
        "table": str(chosen),
    }


def _fits(taken: dict[str, int], parameters: int) -> Facts:
    """Parameters of the largest model like this one for each size of a device, in GB."""
    each = totals(taken)
    return {
        str(size): {key: parameters * size * 10**9 // max(1, own) for key, own in each.items()}
        for size in DEVICE_SIZES
    }


def _memory(facts: Facts, said: OptimArgs, dtype: str, bits: int | None) -> Facts:
    """Bytes per parameter of a matrix, and what there is on top of that; no totals."""
    from hf_relopt.optim.footprint import STATE_BYTES, state_of_matrix

    itemsize = ITEMSIZES[dtype]
    state = state_of_matrix(facts["optim"], said.options)
    passing = bool(said.options.get("step_in_backward"))
    return {
        "dtype": dtype,
        "per_parameter": {
            "weights": itemsize if bits is None else bits / 8,
            "gradients": 0 if passing else itemsize,
            "state": state.entry,
            "adamw_state": 2 * itemsize,
        },
        "per_tensor": {"state": state.tensor, "adamw_state": STATE_BYTES},
        "per_row_and_column": {"state": state.line, "adamw_state": 0},
        "per_neuron": {"state": state.neuron, "adamw_state": 0},
        "per_rank": None,
        "fits": None,
    }


def _dtype(launch: Launch, given: str | None, own: str, notes: list[str]) -> str:
    """The dtype that weights are trained in."""
    dtype = given or own
    upcast = launch.mode in ("FSDP2", "HSDP") and launch.mixed_precision != "no"
    if upcast and dtype != "float32":
        notes.append(
            f"Weights are float32: under FSDP2 with mixed_precision {launch.mixed_precision} "
            f"Accelerate makes {dtype} weights float32 before it shards them."
        )
        return "float32"
    return dtype


def _launch_notes(launch: Launch) -> list[str]:
    from hf_relopt.hf import launch_mode

    notes = []
    unsaid = launch_mode.default_config() if launch.source == "environment" else None
    if unsaid is not None:
        notes.append(
            f"`accelerate launch` without --config_file reads {unsaid}, which was not checked. "
            "Pass it with --accelerate."
        )
    if launch.tensor_ranks > 1:
        notes.append(
            f"Tensor parallelism over {launch.tensor_ranks} ranks also shards the weights in the "
            "model's own tp_plan; the bytes per rank ignore that, so they are an upper bound."
        )
    if launch.mode == "DeepSpeed" and launch.refusal is None:
        notes.append("DeepSpeed with ZeRO stage 0 is not refused, but barely tested.")
    return notes


def _installation(launch: Launch) -> Facts:
    from dataclasses import asdict

    import torch

    from hf_relopt.hf.known_faults import installed, known_faults
    from hf_relopt.hf.registration import SUPPORTED

    versions = installed()
    found = known_faults(versions, launch, SUPPORTED, torch.accelerator.is_available())
    return {"versions": versions, "faults": [asdict(fault) for fault in found]}
