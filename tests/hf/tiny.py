"""Small real parts for the doors' tests: models, texts as numbers, arguments, a child process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

from tests.distributed.ranks import forked

VOCABULARY = 50
FIGURES = {"relative_update", "at_bound", "changed_entries", "skipped_tensors"}
ROOT = Path(__file__).parents[2]


def gpt2(seed: int = 0) -> GPT2LMHeadModel:
    """One layer, 16 wide, tied embeddings, as transformers initialises it."""
    torch.manual_seed(seed)
    # Dropout off, so that two ways to the same step can be compared.
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **shape, **off, **ends))


def pretrained(model: Any) -> Any:
    """The model with norm gains that are no longer all one, as training leaves them."""
    with torch.no_grad():
        for name, param in model.named_parameters():
            if "ln_" in name and name.endswith("weight"):
                param.add_(0.1 * torch.arange(param.numel()) / param.numel())
    return model


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: param.detach().clone() for name, param in model.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def rows(count: int = 32, length: int = 8) -> list[dict[str, torch.Tensor]]:
    """Sequences that count upwards: something that can be learnt."""
    start = torch.arange(count) % VOCABULARY
    ids = (start[:, None] + torch.arange(length)[None, :]) % VOCABULARY
    return [{"input_ids": row, "labels": row} for row in ids]


def arguments(folder: Path, cls: type = TrainingArguments, **given: Any) -> Any:
    """Arguments for a few quiet steps on the CPU."""
    quiet = {
        "output_dir": str(folder),
        "use_cpu": True,
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 1,
    }
    return cls(**{**quiet, **given})


def python(code: str, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a fresh interpreter that can import hf_relopt and these tests."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *argv],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def forked_python(code: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """The same in a process that has imported transformers, and nothing of ours.

    It is forked from one that has, which many tests share: the import takes seconds.
    """
    with TemporaryDirectory() as folder:
        script = Path(folder, "script.py")
        script.write_text(textwrap.dedent(code), encoding="utf-8")
        return forked(1, script, *argv)


def passed(done: subprocess.CompletedProcess[str]) -> str:
    """What a child printed; fails with its own words if it failed."""
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
