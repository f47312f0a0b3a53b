"""Which releases of Accelerate have which fault under FSDP2."""

from __future__ import annotations

import pytest

from hf_relopt.hf import launch_mode
from tests.cli.doctor_calls import DDP, FSDP2, fault_states

pytestmark = pytest.mark.usefixtures("no_launcher")


@pytest.mark.parametrize(
    ("accelerate", "torch", "present"),
    [
        ("1.11.0", "2.13.0", {"sharded-state-is-not-loaded"}),
        ("1.13.0", "2.13.0", {"no-float32-upcast"}),
        ("1.14.0", "2.13.0", {"no-tied-embeddings"}),
        ("1.14.0", "2.12.1", set()),
        ("1.15.0", "2.13.0", set()),
    ],
)
def test_faults_of_accelerate_under_fsdp2(accelerate, torch, present, written):
    ids = {"sharded-state-is-not-loaded", "no-float32-upcast", "no-tied-embeddings"}
    launch = launch_mode.from_config(written(**FSDP2))
    versions = {"accelerate": accelerate, "torch": torch}
    found = fault_states(launch, **versions)
    assert {name for name in ids if found[name] == "present"} == present
    ddp = fault_states(launch_mode.from_config(written(**DDP)), **versions)
    assert {ddp[name] for name in ids} == {"absent"}
