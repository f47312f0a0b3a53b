"""The doctor's report as lines of text."""

from __future__ import annotations

import pytest

from hf_relopt.cli.doctor import run_doctor
from hf_relopt.cli.doctor_report import amount
from tests.cli.doctor_calls import FSDP1

pytestmark = pytest.mark.usefixtures("no_launcher")


def test_without_options_it_is_one_process(capsys):
    assert run_doctor() == 0
    out = capsys.readouterr().out
    assert "one process (from environment)" in out and "exact" in out


def test_the_report_says_what_weights_decide(gpt2_config, capsys):
    assert run_doctor(model=gpt2_config) == 0
    out = " ".join(capsys.readouterr().out.split())
    for words in ("The weights are unknown", "no weights", "0.01", "from scratch", "min_scale"):
        assert words in out
    assert run_doctor(model=gpt2_config, optim_args="lr=0.005") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "The weights are unknown" in out and "assumed" not in out


def test_the_report_of_a_preset(gpt2_config, capsys):
    assert run_doctor(model=gpt2_config, optim="fromage_spectral", optim_args="p_bound=2") == 0
    out = capsys.readouterr().out
    assert "state of fromage_spectral" in out and "fromage, spectral, 3 blocks" in out


@pytest.mark.parametrize(
    ("size", "words"),
    [(12, "12 B"), (999, "999 B"), (3600, "3.60 kB"), (13_480_000_000, "13.48 GB")],
)
def test_amounts(size, words):
    assert amount(size) == words


def test_what_exact_means_is_said(written, capsys):
    assert run_doctor() == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "exact: each step equals that of a single process" in out
    assert run_doctor(accelerate=written(**FSDP1)) == 1
    assert "training raises this error" in " ".join(capsys.readouterr().out.split())
