"""Known faults are told by versions and launch mode."""

from __future__ import annotations

import pytest
import torch

from hf_relopt.hf import launch_mode
from tests.cli.doctor_calls import DDP, FSDP2, facts, fault_states

pytestmark = pytest.mark.usefixtures("no_launcher")


def test_installed_versions():
    versions = facts()["versions"]
    assert list(versions)[:2] == ["python", "torch"]
    assert torch.__version__.startswith(versions["torch"])  # a build has a suffix, as +cu130


def test_versions_out_of_range_are_present():
    assert fault_states()["transformers-untried"] == "absent"
    for version in ("4.57.0", "5.3.9", "5.99.0", "6.0"):
        assert fault_states(transformers=version)["transformers-untried"] == "present"
    assert fault_states(transformers="5.4.0")["transformers-untried"] == "absent"


def test_faults_of_launch_modes(written):
    ddp, fsdp2 = (launch_mode.from_config(written(**config)) for config in (DDP, FSDP2))
    on_cpu = launch_mode.from_config(written(**{**FSDP2, "use_cpu": True}))
    assert fault_states(ddp, accelerate="1.14.0")["evaluate-before-train"] == "present"
    assert fault_states(ddp, accelerate="1.13.0")["evaluate-before-train"] == "absent"
    assert fault_states(ddp, accelerator=False)["no-sharding-on-a-cpu"] == "absent"
    assert fault_states(fsdp2)["no-sharding-on-a-cpu"] == "absent"
    assert fault_states(fsdp2, accelerator=False)["no-sharding-on-a-cpu"] == "present"
    assert fault_states(on_cpu)["no-sharding-on-a-cpu"] == "present"
    assert fault_states(fsdp2)["full-state-dict-needs-a-dimension"] == "handled"
