"""`hf-relopt compress`: what it prints, its exit codes, and that the folder loads."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from hf_relopt.cli.main import app
from hf_relopt.hf.compress_folder import compress_folder
from hf_relopt.lns.tensor import LNSTensor
from tests.cli.doctor_calls import ROOT
from tests.hf.compress_inputs import language_model, nothing_new, text


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    language_model(tmp_path / "model")
    text(tmp_path / "text.txt", 60)
    return tmp_path


def call(*words):
    return CliRunner().invoke(app, ["compress", *map(str, words)])


def test_the_report_says_what_was_lost_and_the_folder_loads(folder):
    done = call("model", "--out", "small", "--format", "lns10", "--data", "text.txt")
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    model = AutoModelForCausalLM.from_pretrained("small")
    weight = model.transformer.h[0].mlp.c_fc.weight
    assert isinstance(weight, LNSTensor) and weight.form.name == "lns10"

    lines = [re.split(r"\s{2,}", line.strip()) for line in done.stdout.splitlines()]
    rows = {line[0]: line[1:] for line in lines if len(line) > 1}
    found = compress_folder("model", folder / "again", "lns10", data=folder / "text.txt")
    assert rows["model"] == ["model (GPT2LMHeadModel)"]
    assert rows["weights before"] == [f"{found.before / 1000:.2f} kB"]
    share = f"{found.after / found.before:.1%}"
    assert rows["weights in lns10"] == [f"{found.after / 1000:.2f} kB, {share}"]
    assert rows["bits per weight in codes"] == [f"{found.total.bits:.3f}, scales included"]
    said = re.fullmatch(
        r"(\S+) before, (\S+) after \(4 windows of 16 tokens\)", *rows["perplexity"]
    )
    assert float(said[1]) == pytest.approx(found.quality.before, abs=1e-4)
    assert float(said[2]) == pytest.approx(found.quality.after, abs=1e-4)
    for each in (*found.errors, found.total):
        shares = [f"{count / each.entries:.3%}" for count in (each.below, each.at_top)]
        shape = ["x".join(map(str, each.shape))] if each.shape else []
        assert rows[each.name] == [*shape, f"{each.relative:.3%}", *shares]
    order = [line[0] for line in lines if line[0].startswith("transformer.")]
    assert order == [e.name for e in sorted(found.errors, key=lambda each: -each.relative)]
    size = (folder / "small" / "model.safetensors").stat().st_size
    assert lines[-1] == [f"wrote small: model.safetensors, {size / 1000:.2f} kB"]


def test_the_ten_that_lost_most_are_shown(folder):
    from tests.distance.nets import gpt2

    gpt2(n_layer=3).save_pretrained("deep")
    done = call("deep", "--out", "small")
    assert "Weights in codes: the 10 that lost most of 14" in done.stdout
    shown = [line for line in done.stdout.splitlines() if line.startswith("  transformer.")]
    assert len(shown) == 10 and max(map(len, done.stdout.splitlines())) <= 110


def test_json_stands_alone(folder):
    done = call("model", "--out", "small", "--skip", "embedding", "--skip", "*.c_fc.*", "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    again = compress_folder("model", folder / "again", skip=["embedding", "*.c_fc.*"])
    assert {**found, "out": "", "files": {}} == {**again.to_dict(), "out": "", "files": {}}
    assert [each["name"].split(".")[-2] for each in found["weights"]] == ["c_attn", *["c_proj"] * 2]
    assert found["quality"] is None and found["bytes_after"] < found["bytes_before"]


def test_weights_that_the_files_lack_are_said_and_the_code_says_partial(folder):
    held = load_file("model/model.safetensors")
    held.pop("transformer.ln_f.bias")
    save_file(held, "model/model.safetensors", metadata={"format": "pt"})
    done = call("model", "--out", "small")
    assert done.exit_code == 1 and "wrote small" in done.stdout
    assert done.stderr == (
        "attention: transformer.ln_f.bias: not in the files of model, and new in the folder, "
        "untrained.\n"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere/at/all", "--out", "small"], "nowhere/at/all does not exist"),
        (["empty", "--out", "small"], "empty holds no model"),
        (["model", "--out", "full"], "full is a folder with files in it"),
        (["model", "--out", "text.txt"], "text.txt is a file"),
        (["model", "--out", "text.txt/small"], "No folder can be made at"),
        (["model", "--out", "."], ". is the folder that you are in"),
        (["model", "--out", "small", "--format", "lns7"], "format is 'lns7'"),
        (["model", "--out", "small", "--skip", "heat"], "skip has 'heat'"),
        (["model", "--out", "small", "--data", "nowhere.txt"], "--data nowhere.txt is no file"),
        (["broken", "--out", "small"], "wpe.weight of broken has entries that are NaN"),
        (["codes", "--out", "small"], "codes is stored in lns8 already"),
    ],
)
def test_a_mistake_is_one_message_and_nothing_is_written(words, said, folder):
    (folder / "empty").mkdir()
    shutil.copytree("model", "full")
    shutil.copytree("model", "broken")
    held = load_file("broken/model.safetensors")
    held["transformer.wpe.weight"][0, 0] = torch.nan
    save_file(held, "broken/model.safetensors", metadata={"format": "pt"})
    if words[0] == "codes":
        compress_folder("model", folder / "codes")
    before = {each.name for each in folder.iterdir()}
    done = call(*words)
    assert done.exit_code == 2 and done.stdout == ""
    assert done.stderr.startswith("hf-relopt compress: ") and said in done.stderr
    assert done.stderr.count("\n") == 1
    assert nothing_new(folder, before)


def test_a_place_that_is_taken_is_refused_before_anything_is_loaded(folder):
    code = (
        "import sys\n"
        "from hf_relopt.cli.compress import run_compress\n"
        "from pathlib import Path\n"
        "code = run_compress('model', Path('model'))\n"
        "print(code, sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "2 []\n", done.stderr
    assert "model is a folder with files in it" in done.stderr


def test_help_can_be_followed():
    done = call("--help")
    assert (done.exit_code, done.stderr) == (0, "")
    for shown in ("  hf-relopt compress gpt2 --out gpt2-lns8\n", "import hf_relopt", "exit code"):
        assert shown in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_on_a_terminal_it_says_what_it_does(folder):
    """In a child, as a person runs it, with the table alone on stdout."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "hf_relopt", "compress", "model", "--out", "small[red]"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=follower, env=environment, text=True
    ) as child:
        os.close(follower)
        seen = b""
        while chunk := _read(leader):
            seen += chunk
        os.close(leader)
        out = child.communicate()[0]
    # The first is shown while Transformers is imported, the last when all is done.
    assert child.returncode == 0 and b"starting" in seen and b"comparing" in seen, seen
    assert out.startswith("model ") and "wrote small[red]: " in out


def _read(leader: int) -> bytes:
    try:
        return os.read(leader, 4096)
    except OSError:  # the other side is closed
        return b""
