"""A training that is interrupted anywhere ends as if it had not been; checkpoints have to fit."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time

import pytest
import torch
from pretrain_clm import main
from run_folder import RunFolder
from safetensors.torch import load_file

from hf_relopt.hf.model_card import card_of_folder
from tests.recipes.recipe_calls import Background, refusal, tiny_pretraining


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(trained, tiny_text, tmp_path):
    folder = tmp_path / "killed"
    arguments = tiny_pretraining(tiny_text, folder, max_steps=12, eval_steps=6, save_steps=3)
    background = Background("pretrain_clm.py", arguments, tmp_path)
    # From the first checkpoint on anything may be under way: a step, a checkpoint, the results.
    background.until(lambda: bool(list(folder.glob("checkpoint-*"))))
    time.sleep(random.uniform(0, 0.7))
    background.end(signal.SIGKILL)
    main(arguments)
    assert_same_result(folder, trained)


@pytest.mark.parametrize(
    "damage",
    ["a checkpoint cut short", "no checkpoint yet", "results half written", "no data yet"],
)
def test_what_a_kill_leaves_behind_is_mended(damage, trained, tiny_text, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "damaged")
    record = json.loads((folder / "run.json").read_text())
    for entry in ("finished", "after", "steps", "seconds", "sample", "hints"):
        del record[entry]
    (folder / "run.json").write_text(json.dumps(record))
    for name in ("README.md", "loss_curve.png", "trainer_state.json"):
        (folder / name).unlink()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    if damage == "a checkpoint cut short":
        (folder / "checkpoint-12" / "model.safetensors").write_bytes(b"\x10")
        (folder / "checkpoint-12" / "trainer_state.json").unlink()
    elif damage != "results half written":
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    if damage == "no data yet":
        shutil.rmtree(folder / "data")
    main(tiny_pretraining(tiny_text, folder, max_steps=12, eval_steps=6, save_steps=3))
    assert_same_result(folder, trained)


def assert_same_result(folder, unbroken):
    ours, theirs = (load_file(path / "model.safetensors") for path in (folder, unbroken))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    records = [RunFolder(path).record for path in (folder, unbroken)]
    for when in ("before", "after"):
        assert records[0][when]["eval_perplexity"] == records[1][when]["eval_perplexity"]
    assert records[0]["sample"] == records[1]["sample"]
    assert records[0]["finished"]


def test_a_run_shorter_than_its_logging_steps_shows_its_loss(tiny_text, tmp_path, capsys):
    folder = tmp_path / "short"
    main(tiny_pretraining(tiny_text, folder, max_steps=3, logging_steps=100))
    out = capsys.readouterr().out
    assert "step 1/3  loss" in out and "step 3/3  loss" in out
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 3]


@pytest.fixture(scope="module")
def checkpoint(tiny_text, tmp_path_factory):
    """Of two steps with the paper's rule."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    main(tiny_pretraining(tiny_text, folder, optim="fromage"))
    return folder / "checkpoint-2"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"optim": "madam"}, "trained with fromage, not with madam"),
        ({"optim": "adamw_torch"}, "trained with fromage, not with adamw_torch"),
        ({"optim": "fromage_spectral"}, "fromage"),
        ({"config_overrides": "n_layer=1,n_embd=32,n_head=2"}, "another model: its weight"),
        ({"config_overrides": "n_layer=2,n_embd=16,n_head=2"}, "another model: it has"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    flags, words, checkpoint, tiny_text, tmp_path, capsys
):
    more = {"max_steps": 4, "resume_from_checkpoint": checkpoint, "optim": "fromage", **flags}
    arguments = tiny_pretraining(tiny_text, tmp_path / "second", **more)
    assert words in refusal(main, arguments, capsys)


def test_the_folder_of_a_run_makes_the_card_that_the_run_wrote(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / trained.name)
    written = (folder / "README.md").read_text()
    assert "](loss_curve.png)" in written and "before training" in written
    found = card_of_folder(folder)
    assert found.notes == ()
    again = (folder / "README.md").read_text()
    assert again.replace(str(tmp_path), "") == written.replace(str(trained.parent), "")
    assert not (folder / "relopt_loss.png").exists()
