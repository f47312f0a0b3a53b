"""Mistakes in the doctor's options are one message, before anything heavy is loaded."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.cli.doctor_calls import ROOT, facts, fails

pytestmark = pytest.mark.usefixtures("no_launcher")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"optim": "adam"}, "hf_relopt has"),
        ({"optim": "formage"}, "Did you mean fromage?"),
        ({"optim": "adamw"}, "For torch's AdamW, use --optim adamw_torch in the Trainer"),
        ({"optim": "adamw_torch_fused"}, "For torch's AdamW"),
        ({"optim": "sgd"}, "not an optimizer of hf_relopt"),
        ({"optim_args": "p_bond=1"}, "p_bound"),
        ({"optim_args": "x"}, "name=value"),
        ({"optim_args": "conv.lr=0.1"}, "matches no trainable weight"),
        ({"optim_args": "vectr.lr=0.1"}, "Did you mean vector?"),
        ({"dtype": "int8"}, "float32"),
    ],
)
def test_mistakes_in_options(given, words, gpt2_config, capsys):
    assert words in fails(capsys, model=gpt2_config, **given)


@pytest.mark.parametrize(
    ("short", "name"),
    [
        ("bf16", "bfloat16"), ("fp16", "float16"), ("half", "float16"), ("float", "float32"),
        ("fp32", "float32"), ("torch.bfloat16", "bfloat16"), ("BF16", "bfloat16"),
    ],
)  # fmt: skip
def test_short_names_of_dtypes(short, name):
    assert facts(dtype=short)["memory"]["dtype"] == name


def test_mistakes_are_told_before_torch_is_loaded(tmp_path, capsys):
    code = """
import sys
from hf_relopt.cli.doctor import run_doctor
for given in ({"optim": "adamw"}, {"optim": "formage"}, {"dtype": "int8"}, {"accelerate": "x"},
              {"model": "./nosuch"}, {"model": "/dev"}):
    assert run_doctor(**given) == 2, given
print(sorted({"torch", "transformers", "accelerate", "rich"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout == "[]\n", done.stderr
    assert len(done.stderr.splitlines()) == 6
