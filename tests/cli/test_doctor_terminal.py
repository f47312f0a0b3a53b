"""The doctor's report on a terminal says what the lines say, in colour and tables."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from hf_relopt.cli.doctor_report import lines
from hf_relopt.cli.doctor_terminal import show
from tests.cli.doctor_calls import FSDP1, FSDP2, facts

pytestmark = pytest.mark.usefixtures("no_launcher")


def on_a_terminal(found: dict, **given: object) -> str:
    console = Console(force_terminal=True, width=110, file=io.StringIO(), highlight=False, **given)
    show(found, console)
    return console.file.getvalue()


def test_on_a_terminal_there_are_colours_and_tables(gpt2_config, written, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    found = facts(model=gpt2_config, optim="fromage_spectral")
    out = on_a_terminal(found)
    assert "\x1b[1;32mexact" in out and "─" in out
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out)
    for line in lines(found):  # every number and name of the plain report is there
        for word in re.findall(r"[\w.,]*\d[\w.,]*", line):
            assert word.strip(".,") in plain, word
    faulty = on_a_terminal(facts(written(**{**FSDP2, "use_cpu": True})))
    assert "\x1b[1;33mattention: " in faulty and "\x1b[2mhandled: " in faulty
    refused = on_a_terminal(facts(written(**FSDP1)))
    assert "\x1b[1;31mrefused" in refused
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", on_a_terminal(found))
