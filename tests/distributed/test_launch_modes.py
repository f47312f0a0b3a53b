"""One optimizer means one thing in every launch mode, or it is refused: two real gloo ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
from torch import nn

from hf_relopt import create_optimizer
from hf_relopt.hf import accelerate_faults
from tests.distributed import launch_modes
from tests.distributed.ranks import HERE, ROOT, forked


@pytest.fixture(scope="module")
def two_ranks() -> subprocess.CompletedProcess[str]:
    """All checks in one launch: starting Python and torch costs more than the checks."""
    return forked(2, HERE / "launch_modes.py", timeout=300)


@pytest.mark.dist
@pytest.mark.parametrize("check", [check.__name__ for check in launch_modes.CHECKS])
def test_two_ranks(two_ranks, check):
    for rank in (0, 1):
        assert f"rank {rank}: {check}\n" in two_ranks.stdout, two_ranks.stdout + two_ranks.stderr


@pytest.mark.dist
def test_two_ranks_end_well(two_ranks):
    assert two_ranks.returncode == 0, two_ranks.stderr


@pytest.mark.parametrize("optim", ["fromage", "madam"])
def test_data_parallel_equals_the_bare_model(optim):
    """On a CPU DataParallel only wraps: names, roles and steps must be the inner model's."""
    model = nn.DataParallel(launch_modes.net())
    optimizer = create_optimizer(model, optim, 0.05)
    assert optimizer.param_groups[0]["param_names"][0] == "module.0.weight"
    launch_modes.train(model, optimizer, slice(None))
    expected = launch_modes.whole_batch(optim, torch.float32)
    for param, alone in zip(model.parameters(), expected, strict=True):
        assert torch.equal(param, alone)


@pytest.mark.dist
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, FSDP is FSDP")
def test_fsdp_without_an_accelerator_does_not_train_apart(tmp_path):
    """Accelerate starts two processes for such a configuration and tells them of one.

    Before 1.13 it trains them in DDP.
    """
    config, script = tmp_path / "fsdp.yaml", tmp_path / "script.py"
    config.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nnum_processes: 2\n"
        "num_machines: 1\nmachine_rank: 0\nmixed_precision: 'no'\nfsdp_config:\n"
        "  fsdp_version: 2\n  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP\n"
    )
    script.write_text(
        "from accelerate import PartialState\nfrom transformers import Trainer\n"
        "from hf_relopt import RelOptTrainer, UnsupportedSetup\n"
        "from tests.hf.tiny import arguments, gpt2, rows\n"
        f"args = arguments({str(tmp_path)!r}, optim='fromage', use_cpu=False)\n"
        "for each in (RelOptTrainer, Trainer):\n"
        "    try:\n"
        "        each(gpt2(), args, train_dataset=rows()).train()\n"
        "        assert PartialState().num_processes == 2\n"
        "        print('trained together', flush=True)\n"
        "    except UnsupportedSetup as error:\n"
        # In one write: the two ranks share the pipe.
        "        print(f'refused: {each.__name__} {error}\\n', end='', flush=True)\n"
        "Trainer(gpt2(), args, train_dataset=rows()).train()\nprint('trained')\n"
    )
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    done = subprocess.run(
        [*launch, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    said = done.stdout + done.stderr
    if accelerate_faults.numbers(version("accelerate")) < (1, 13):
        assert done.stdout.count("trained together") == 4, said
        return
    for name in ("RelOptTrainer", "Trainer"):
        assert done.stdout.count(f"refused: {name} ") == 2, said
    assert done.stdout.count("2 processes were started") == 4, said
    assert "2 processes were started" in done.stderr, said
    assert "trained" not in done.stdout and done.returncode != 0
