"""Whatever the files of a run hold, there is a page or one message of our own."""

from __future__ import annotations

import json
import re
import shutil
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_relopt.errors import FormatError
from hf_relopt.report.compare_page import compare_page
from hf_relopt.report.run_files import read_run
from hf_relopt.report.run_page import run_page
from tests.report import written

VALUES = ["null", "true", "0", "-1", "1e308", "1e999", "-5", '"x"', '""', "[]", "{}", "[1]",
          '{"a": 1}', "NaN", "Infinity", "1e-320", '"<b>"', "1" * 40]  # fmt: skip


def changed(content, rng):
    """The content with one entry, at any depth, replaced by something else."""
    inside = content
    for _ in range(rng.randrange(1, 6)):
        keys = list(inside) if isinstance(inside, dict) else range(len(inside or ()))
        if not keys:
            break
        key = rng.choice(keys)
        if rng.random() < 0.35 or not isinstance(inside[key], dict | list):
            inside[key] = json.loads(rng.choice(VALUES))
            break
        inside = inside[key]
    return content


def damage(path, rng):
    """Nothing, a file removed, cut, with other bytes, or with other entries."""
    kind = rng.choice(["none", "removed", "cut", "bytes", "entries", "entries", "entries"])
    content = bytearray(path.read_bytes())
    if kind == "removed":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(content[: rng.randrange(len(content))])
    elif kind == "bytes":
        for _ in range(rng.randrange(1, 20)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
    elif kind == "entries":
        lines = content.decode().splitlines() if path.suffix == ".jsonl" else [content.decode()]
        parts = [json.loads(line) for line in lines]
        for _ in range(rng.randrange(1, 12)):
            parts = changed(parts, rng)
        path.write_text("\n".join(map(json.dumps, parts)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    written.write_telemetry(folder, written.telemetry_of(6, written.gpt2_layers(1)))
    written.write_json(folder / "relopt_run.json", written.record())
    log = [{"step": step, "loss": 1.0, "eval_loss": 2.0, "seconds": step / 5} for step in range(6)]
    written.write_json(folder / "trainer_state.json", written.trainer_state(log))
    recipe = {"recipe": {"optim": "madam", "seed": 1}, "command": "make demo", "steps": 6}
    written.write_json(folder / "run.json", recipe)
    written.write_json(folder / "config.json", {"architectures": ["GPT2LMHeadModel"]})
    return folder


@given(rng=st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_there_is_a_page_or_one_message(whole, rng):
    with TemporaryDirectory() as folder:
        copy = shutil.copytree(whole, f"{folder}/copy")
        paths = sorted(read_run(whole).path.iterdir())
        for path in paths:
            damage(type(path)(copy) / path.name, rng)
        try:
            run = read_run(type(whole)(copy))
        except FormatError as error:
            assert str(error) and "\n" not in str(error)
            return
        page = run_page(run) + compare_page([run, read_run(whole)])
        assert page.encode() and not re.search(r'[xyr][12]?="(?:nan|inf)|d="[^"]*nan', page)
