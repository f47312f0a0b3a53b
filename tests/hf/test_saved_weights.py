"""Weights of another model are refused before any is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_relopt import RelOptTrainer
from hf_relopt.errors import FormatError
from tests.hf.tiny import arguments, gpt2, rows, same, weights


def refuses_the_weights(run: Path, model: object, match: str) -> None:
    before = weights(model)
    job = RelOptTrainer(model, arguments(run, optim="fromage"), train_dataset=rows())
    with pytest.raises(FormatError, match=match):
        job.train(str(run / "checkpoint-4"))
    assert same(before, weights(model))


def in_shards(folder: Path, held: dict[str, torch.Tensor]) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {name: "part.safetensors" for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file(held, folder / "part.safetensors")


def as_torch(folder: Path, held: dict[str, torch.Tensor]) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(held, folder / "pytorch_model.bin")


def as_safetensors(folder: Path, held: dict[str, torch.Tensor]) -> None:
    save_file(held, folder / "model.safetensors")


@pytest.mark.parametrize("written", [in_shards, as_torch, as_safetensors])
def test_weights_of_another_model_are_refused(written, plain_run, tmp_path):
    sound = load_file(plain_run / "checkpoint-4" / "model.safetensors")
    name = "transformer.wte.weight"
    for number, (change, match) in enumerate([
        ({**sound, name: torch.zeros(3, 3)}, rf"{name} is \[3, 3\], but \[50, 16\]"),
        ({f"other.{key}": value for key, value in sound.items()}, "weight of this model"),
        (sound, None),
        ({key: value for key, value in sound.items() if key == name}, None),
    ]):  # fmt: skip
        run = Path(shutil.copytree(plain_run, tmp_path / str(number)))
        written(run / "checkpoint-4", change)
        if match:
            refuses_the_weights(run, gpt2(seed=1), match)
        else:
            args = arguments(run, optim="fromage", max_steps=5)
            job = RelOptTrainer(gpt2(seed=1), args, train_dataset=rows())
            job.train(str(run / "checkpoint-4"))
            assert job.state.global_step == 5


def test_no_weights_at_all_are_refused(run):
    save_file({}, run / "checkpoint-4" / "model.safetensors")
    refuses_the_weights(run, gpt2(), "none of its 0 tensors")
