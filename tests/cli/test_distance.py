"""`hf-relopt distance`: what it prints, where, and how it ends."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import subprocess
import sys

import pytest
import torch

from hf_relopt import network_distance
from hf_relopt.cli.distance import TOP, run_distance
from hf_relopt.distance.compare import Comparison
from tests.distance.nets import MINILM, gpt2, moved


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("networks")
    model = gpt2()
    for name, net in (("a", model), ("b", moved(model))):
        net.save_pretrained(place / name)
    torch.save({"input_ids": torch.arange(16).view(2, 8)}, place / "batch.pt")
    return place


@pytest.fixture
def pair(folders):
    return str(folders / "a"), str(folders / "b")


def test_the_table_says_what_the_distance_says(pair, capsys):
    assert run_distance(*pair) == 0
    out, err = capsys.readouterr()
    found = network_distance(*pair)
    assert err == "" and f"deep relative trust                           {found.drt:.4g}" in out
    lines = out.splitlines()
    shown = [line.split()[0] for line in lines if line.startswith("transformer.")]
    assert shown == [layer.name for layer in found.layers]
    assert "zero before (13 tensors): " in out


def test_top_shows_the_layers_that_moved_most(pair, capsys):
    assert run_distance(*pair, top=2) == 0
    out = capsys.readouterr().out
    found = sorted(network_distance(*pair).layers, key=lambda layer: -layer.relative_update)
    kinds, layers = out.split("layer                               shape")
    shown = [line.split()[0] for line in layers.splitlines() if line.startswith("transformer.")]
    assert shown == [layer.name for layer in found[:2]]
    assert "transformer.h.*.attn.c_proj.weight       2 " in kinds
    assert f"The 2 of {len(found)} layers that moved most; --top {len(found)} shows all." in out


def test_many_layers_are_not_all_shown_unless_asked_for(capsys):
    assert run_distance(str(MINILM), str(MINILM)) == 0
    assert f"The {TOP} of " in capsys.readouterr().out
    assert run_distance(str(MINILM), str(MINILM), top=1000) == 0
    assert " that moved most" not in capsys.readouterr().out


def test_json_and_csv_stand_alone_on_stdout(pair, capsys):
    assert run_distance(*pair, as_json=True, norm="both") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(json.dumps(network_distance(*pair, norm="both").to_dict()))
    assert run_distance(*pair, as_csv=True) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == len(found["layers"])


def test_a_batch_is_run_on_both(pair, folders, capsys):
    assert run_distance(*pair, batch=str(folders / "batch.pt"), as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["measured"]["output_change"] > 0


def test_a_picture_is_drawn(pair, tmp_path, capsys):
    assert run_distance(*pair, plot=tmp_path / "x.png") == 0
    assert (tmp_path / "x.png").stat().st_size > 5000
    assert capsys.readouterr().err == f"wrote {tmp_path / 'x.png'}\n"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"norm": "nuclear"}, "--norm is 'nuclear'; allowed are frobenius, spectral, both."),
        ({"gradients": True}, "--gradients needs inputs to run on. Pass --batch FILE, too."),
        ({"as_json": True, "as_csv": True}, "--json and --csv are both given"),
        ({"plot": "x.doc"}, "has no suffix of a picture"),
        ({"batch": "nowhere.txt"}, "--batch nowhere.txt is no file"),
    ],
)
def test_mistakes_in_options_are_one_line(pair, given, words, capsys, tmp_path):
    if "plot" in given:
        given = {"plot": tmp_path / given["plot"]}
    assert run_distance(*pair, **given) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("hf-relopt distance: ") and words in err
    assert err.count("\n") == 1


def test_a_damaged_part_is_named_and_the_rest_is_shown(pair, folders, tmp_path, capsys):
    moved(gpt2()).save_pretrained(tmp_path / "c", max_shard_size="5KB")
    broken = sorted((tmp_path / "c").glob("*.safetensors"))[1]
    broken.write_bytes(broken.read_bytes()[:-40])
    assert run_distance(pair[0], str(tmp_path / "c")) == 1
    assert f"PARTIAL: {broken.name}: " in capsys.readouterr().out
    assert run_distance(pair[0], str(tmp_path / "c"), as_json=True) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["partial"] and "hf-relopt distance: partial: " in err


def test_what_was_measured_before_ctrl_c_is_shown(pair, monkeypatch, capsys):
    real = Comparison.run

    def interrupted(self, progress=None):
        def stop(done, total, name):
            if done == 4:
                raise KeyboardInterrupt

        real(self, stop)

    monkeypatch.setattr(Comparison, "run", interrupted)
    assert run_distance(*pair) == 130
    out = capsys.readouterr().out
    assert "PARTIAL: interrupted" in out and "transformer.wte.weight" in out


def test_the_command_shows_a_bar_on_a_terminal_and_only_the_table_on_stdout(pair):
    command = [sys.executable, "-m", "hf_relopt", "distance", *pair]
    plain = subprocess.run(command, capture_output=True, text=True, check=True)
    assert plain.stderr == ""
    leader, follower = pty.openpty()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=follower, text=True, check=True)
    os.close(follower)
    seen = b""
    while chunk := _read(leader):
        seen += chunk
    assert done.stdout == plain.stdout and b"/28" in seen


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # the other end is closed
        return b""
