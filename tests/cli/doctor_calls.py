"""The doctor in this process: its facts, its message for a mistake, the states of faults."""

from __future__ import annotations

from pathlib import Path

from hf_relopt.cli.doctor import examine, run_doctor
from hf_relopt.hf import launch_mode
from hf_relopt.hf.known_faults import installed, known_faults
from hf_relopt.hf.registration import SUPPORTED

ROOT = Path(__file__).resolve().parents[2]
DDP = {"distributed_type": "MULTI_GPU", "num_processes": 4}
FSDP1 = {"distributed_type": "FSDP", "num_processes": 4, "fsdp_config": {"fsdp_version": 1}}
FSDP2 = {"distributed_type": "FSDP", "num_processes": 4, "fsdp_config": {"fsdp_version": 2}}


def facts(
    accelerate=None, model=None, optim="fromage", optim_args=None, processes=None, dtype=None
):
    return examine(accelerate, model, optim, optim_args, processes, dtype)


def fails(capsys, **given) -> str:
    """The one message of a mistake."""
    assert run_doctor(**given) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("hf-relopt doctor: ") and err.count("\n") == 1
    return err


def fault_states(launch=None, accelerator=True, **versions: str) -> dict[str, str]:
    launch = launch or launch_mode.from_environment()
    found = known_faults({**installed(), **versions}, launch, SUPPORTED, accelerator)
    return {fault.id: fault.status for fault in found}
