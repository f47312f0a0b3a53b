"""What holds for every test: no network, one thread, warnings as errors in children too."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

# Before anything imports the libraries that read these.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_EVALUATE_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    CUBLAS_WORKSPACE_CONFIG=":4096:8",
)
# Two workers of xdist on two cores: more threads only fight. Children inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Trackers that happen to be installed must not start by themselves.
os.environ.setdefault("WANDB_DISABLED", "true")

import pytest
import torch
from hypothesis import HealthCheck, settings

# A shell's background jobs ignore Ctrl-C, and so would every process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
# Without a GPU the kernels run in Triton's interpreter, which has to be chosen before its import.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A slow machine is no failure. On CI the same examples come each time: a red run can be repeated.
settings.register_profile(
    "default",
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a CUDA device where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of garbage collections.

    Accelerate asks for one whenever a training begins; to walk all modules takes longer than most
    trainings here.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _same_seed_for_every_test() -> None:
    """No test depends on which tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _transformers_says_as_much_in_every_test() -> Iterator[None]:
    """A test that quiets Transformers does not quiet those that read its log after it."""
    logger = logging.getLogger("transformers")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment that has what this one has, but not hf_relopt."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = next(path for path in folder.rglob("python*") if path.stem == "python")
    # A folder named in a .pth file is searched, but its own .pth files (our editable
    # installation is one) are not read.
    site = next(folder.rglob("site-packages"))
    here = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "third_parties.pth").write_text("\n".join(sorted(here)))
    return python


@pytest.fixture
def no_launcher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a launcher's variables nor a person's own default configuration."""
    from accelerate.commands.config import config_args

    for name in list(os.environ):
        if name.startswith(("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "WORLD_SIZE")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(config_args, "default_config_file", str(tmp_path / "none.yaml"))


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., str]:
    """A configuration in a file, as `accelerate config` writes it."""
    from accelerate.commands.config.config_args import ClusterConfig

    def write(suffix: str = "yaml", **given: object) -> str:
        base = {"compute_environment": "LOCAL_MACHINE", "mixed_precision": "no", "debug": False}
        config = ClusterConfig(**{**base, "use_cpu": False, **given})
        path = tmp_path / f"config.{suffix}"
        getattr(config, f"to_{suffix}_file")(str(path))
        return str(path)

    return write


@pytest.fixture(scope="session")
def gpt2_config(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny GPT-2's configuration and no weights."""
    from transformers import GPT2Config

    folder = tmp_path_factory.mktemp("gpt2")
    size = {"vocab_size": 51, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    GPT2Config(**size, **ends, architectures=["GPT2LMHeadModel"]).save_pretrained(folder)
    return str(folder)
