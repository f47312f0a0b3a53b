"""PEFT keeps an adapter of any name but "default" in a folder; it is weights like any other."""

from __future__ import annotations

import inspect
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from hf_relopt import RelOptTrainer
from hf_relopt.errors import FormatError
from hf_relopt.hf.checkpoints import find_fault, last_complete_checkpoint
from tests.hf.tiny import arguments, gpt2, pretrained, rows, same, weights

# PEFT itself still asks for the old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")
peft = pytest.importorskip("peft")
safetensors = pytest.importorskip("safetensors.torch")

NAMES = {
    "default": ("default",),
    "named": ("mine",),
    "two": ("one", "two"),
    "mixed": ("default", "b"),
}


def adapted(names: tuple[str, ...], seed: int = 0, r: int = 4) -> Any:
    config = peft.LoraConfig(target_modules=["c_attn"], r=r, fan_in_fan_out=True)
    model = peft.get_peft_model(pretrained(gpt2(0)), config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    model.set_adapter(names[0])
    return model


def trainer(folder: Path, names: tuple[str, ...], kind: type = RelOptTrainer, **given: Any) -> Any:
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    args = arguments(folder, optim="fromage", **{**saving, **given})
    return kind(adapted(names), args, train_dataset=rows())


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run of each kind, with checkpoints 2 and 4."""
    folder = tmp_path_factory.mktemp("runs")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is", FutureWarning)
        for kind, names in NAMES.items():
            trainer(folder / kind, names).train()
    return folder


@pytest.fixture
def runs(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "runs"))


@pytest.mark.parametrize("kind", NAMES)
def test_adapters_of_any_name_resume_and_end_as_unbroken(kind, runs):
    last = runs / kind / "checkpoint-4"
    assert find_fault(last) is None
    # Transformers 5.4 loads the default adapter only where it is alone.
    if kind == "mixed" and '"default"' not in inspect.getsource(Trainer._load_from_checkpoint):
        pytest.skip("the stock Trainer does not load the default adapter beside others")
    unbroken = last / NAMES[kind][0] if NAMES[kind][0] != "default" else last
    expected = safetensors.load_file(unbroken / "adapter_model.safetensors")
    shutil.rmtree(runs / kind / "checkpoint-4")
    again = trainer(runs / kind, NAMES[kind])
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    # A starts one step later than B, which is zero at first.
    assert {int(state["step"]) for state in again.optimizer.optimizer.state.values()} == {3, 4}
    found = safetensors.load_file(unbroken / "adapter_model.safetensors")
    assert same(expected, found) and len(expected) == 2


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
@pytest.mark.parametrize("how", [b"", b"text", "missing"])
@pytest.mark.parametrize("kind", NAMES)
def test_a_damaged_adapter_is_a_fault(kind, how, name, runs):
    for adapter in NAMES[kind]:
        folder = Path(shutil.copytree(runs / kind / "checkpoint-4", runs / f"{kind}-{adapter}"))
        path = (folder if adapter == "default" else folder / adapter) / name
        path.unlink() if how == "missing" else path.write_bytes(how)
        fault = find_fault(folder)
        if (how, name) == ("missing", "adapter_model.safetensors"):
            # The one at the top is not missed where there are others.
            assert (fault is None) == (kind == "mixed" and adapter == "default")
        else:
            assert str(path.relative_to(folder)) in fault


def test_an_adapter_of_torch_save_runs_nothing(runs, tmp_path):
    class Evil:
        def __reduce__(self) -> Any:
            return Path.mkdir, (tmp_path / "trap",)

    path = runs / "named" / "checkpoint-4" / "mine"
    (path / "adapter_model.safetensors").unlink()
    torch.save(Evil(), path / "adapter_model.bin")
    assert "mine/adapter_model.bin holds a pickle that is not to be" in find_fault(path.parent)
    assert last_complete_checkpoint(runs / "named") == str(runs / "named" / "checkpoint-2")
    assert not (tmp_path / "trap").exists()


def test_a_folder_of_anything_else_is_not_weights(runs):
    folder = runs / "named" / "checkpoint-4"
    (folder / "mine").rename(folder / "notes")
    (folder / "notes" / "adapter_model.safetensors").rename(folder / "notes" / "x.safetensors")
    (folder / "notes" / "adapter_config.json").unlink()
    assert find_fault(folder) == "it holds no weights"


@pytest.mark.parametrize("kind", NAMES)
def test_weights_of_another_adapter_are_refused(kind, runs):
    first = NAMES[kind][0]
    part = runs / kind / "checkpoint-4" / ("" if first == "default" else first)
    held = safetensors.load_file(part / "adapter_model.safetensors")
    shape = {name: value.repeat(2, 2) for name, value in held.items()}
    for change, match in (
        (shape, rf"{re.escape(next(iter(sorted(shape))))} is"),
        ({f"other.{name}": value for name, value in held.items()}, "none of its tensors"),
    ):
        safetensors.save_file(change, part / "adapter_model.safetensors")
        again = trainer(runs / kind, NAMES[kind])
        before = weights(again.model)
        with pytest.raises(FormatError, match=match):
            again.train(str(runs / kind / "checkpoint-4"))
        assert same(before, weights(again.model))
