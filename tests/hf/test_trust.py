"""A prepared checkpoint ends in one message, and nothing that lies in it has run."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader
from transformers import Trainer

from hf_relopt import FormatError, Madam, RelOptTrainer
from hf_relopt.hf.checkpoints import find_fault, last_complete_checkpoint
from hf_relopt.hf.shard_files import read_metadata
from tests.hf.tiny import arguments, gpt2, rows

# torch says that it saves from a single process.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


class Makes:
    """Pickled, it is a call that leaves a folder behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def prepared(path: Path) -> bytes:
    return pickle.dumps(Makes(path))


def as_global(module: str, name: str, argument: str) -> bytes:
    """A pickle that calls module.name(argument)."""
    return f"c{module}\n{name}\n(V{argument}\ntR.".encode()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A checkpoint whose optimizer was saved in shards as Accelerate saves it under FSDP2."""
    folder = tmp_path_factory.mktemp("run")
    args = arguments(folder, optim="fromage", save_strategy="steps", save_steps=2, max_steps=2)
    Trainer(gpt2(), args, train_dataset=rows()).train()
    weight = torch.nn.Parameter(torch.ones(64, 64))
    optimizer = Madam([("weight", weight)])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    state = {"optimizer": {**optimizer.state_dict(), "word": "value"}}
    with pytest.warns(UserWarning, match="single process"):
        dcp.save(state, checkpoint_id=folder / "checkpoint-2" / "optimizer_0")
    return folder


@pytest.fixture
def checkpoint(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run")) / "checkpoint-2"


@pytest.fixture
def trap(tmp_path) -> Path:
    return tmp_path / "trap"


def assert_refused(checkpoint: Path, trap: Path, *words: str) -> None:
    """Every way that looks at the checkpoint ends in words, and none springs the trap."""
    fault = find_fault(checkpoint)
    assert fault is not None and "\n" not in fault
    for word in words:
        assert word in fault
    assert last_complete_checkpoint(checkpoint.parent) is None
    job = RelOptTrainer(
        gpt2(), arguments(checkpoint.parent / "out", optim="fromage"), train_dataset=rows()
    )
    with pytest.raises(FormatError, match="not a complete checkpoint"):
        job.train(str(checkpoint))
    assert not trap.exists()


def test_a_sound_one_is_whole_and_read_alike(checkpoint):
    assert find_fault(checkpoint) is None
    theirs = FileSystemReader(checkpoint / "optimizer_0").read_metadata()
    ours = read_metadata(checkpoint / "optimizer_0")
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.storage_data == theirs.storage_data


@pytest.mark.parametrize("part", ["optimizer_0", "pytorch_model_fsdp_0"])
@pytest.mark.parametrize("name", [".metadata", "__0.metadata"])
def test_metadata_runs_nothing(part, name, checkpoint, trap):
    if part != "optimizer_0":
        shutil.copytree(checkpoint / "optimizer_0", checkpoint / part)
    (checkpoint / part / name).write_bytes(prepared(trap))
    assert_refused(checkpoint, trap, part, "metadata", "mkdir")


@pytest.mark.parametrize(("module", "name"), [
    ("os", "system"), ("builtins", "eval"), ("builtins", "getattr"), ("torch", "load"),
    ("torch", "compile"), ("torch.serialization", "load"), ("torch.hub", "load"),
    ("torch.distributed.checkpoint.metadata", "os.system"),
    ("torch.distributed.checkpoint.filesystem", "os"), ("pathlib", "os"),
    ("torch.distributed.checkpoint.filesystem", "FileSystemReader"), ("collections", "abc"),
])  # fmt: skip
def test_no_name_leads_out_of_the_metadata(module, name, checkpoint, trap):
    (checkpoint / "optimizer_0" / ".metadata").write_bytes(as_global(module, name, f"touch {trap}"))
    assert_refused(checkpoint, trap, ".metadata cannot be read", f"{module}.{name}")


@pytest.mark.parametrize("content", [
    b"", b"text", b"\x80\x05", pickle.dumps(None), pickle.dumps([1]), pickle.dumps({}),
    b"(" * 100_000, b"]" + b"(l" * 50_000 + b".", b"\x8e" + b"\xff" * 8,
    b"\x80\x04\x95" + b"\xff" * 8,
])  # fmt: skip
def test_garbage_in_the_metadata_is_a_fault(content, checkpoint, trap):
    (checkpoint / "optimizer_0" / ".metadata").write_bytes(content)
    assert_refused(checkpoint, trap, "optimizer_0", ".metadata cannot be read")


def test_an_entry_that_is_no_tensor_runs_nothing(checkpoint, trap):
    """torch.distributed.checkpoint loads these with weights_only=False."""
    folder = checkpoint / "optimizer_0"
    metadata = FileSystemReader(folder).read_metadata()
    entry = next(i for key, i in metadata.storage_data.items() if key.fqn == "optimizer.word")
    content = io.BytesIO()
    torch.save(Makes(trap), content)
    file = folder / entry.relative_path
    entry.offset, entry.length = file.stat().st_size, len(content.getvalue())
    file.write_bytes(file.read_bytes() + content.getvalue())
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    assert_refused(checkpoint, trap, "not to be trusted", "mkdir")
    # The trap is one: what torch does with the same folder springs it.
    held = {"optimizer": {"word": ""}}
    with pytest.warns(UserWarning, match="single process"):
        dcp.load(held, checkpoint_id=folder)
    assert trap.exists()


@pytest.mark.parametrize("change", [
    {"relative_path": "../trainer_state.json"}, {"relative_path": "/etc/hostname"},
    {"relative_path": 3}, {"relative_path": ""}, {"offset": -1}, {"offset": "x"},
    {"length": 2**62}, {"length": None}, {"transform_descriptors": ["zstd"]},
])  # fmt: skip
def test_an_entry_lies_in_a_file_of_the_folder(change, checkpoint, trap):
    folder = checkpoint / "optimizer_0"
    metadata = FileSystemReader(folder).read_metadata()
    vars(next(iter(metadata.storage_data.values()))).update(change)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    assert_refused(checkpoint, trap, "optimizer_0")


def test_a_lost_block_of_a_shard_is_noticed(checkpoint, trap):
    (file,) = (checkpoint / "optimizer_0").glob("*.distcp")
    content = bytearray(file.read_bytes())
    metadata = read_metadata(checkpoint / "optimizer_0")
    key = next(key for key in metadata.storage_data if "second_moment" in key.fqn)
    middle = metadata.storage_data[key].offset + metadata.storage_data[key].length // 2
    content[middle : middle + 64] = bytes(64)
    file.write_bytes(content)
    assert_refused(checkpoint, trap, "checksum")


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt"])
def test_files_of_torch_save_run_nothing(name, checkpoint, trap):
    torch.save(Makes(trap), checkpoint / name)
    assert_refused(checkpoint, trap, name, "not to be trusted", "mkdir")


def test_weights_of_torch_save_run_nothing(checkpoint, trap):
    (checkpoint / "model.safetensors").unlink()
    torch.save(Makes(trap), checkpoint / "pytorch_model.bin")
    assert_refused(checkpoint, trap, "pytorch_model.bin", "not to be trusted")


def test_a_plain_pickle_runs_nothing(checkpoint, trap):
    """Of before torch's zip files; nothing of ours was ever written so."""
    (checkpoint / "optimizer.pt").write_bytes(prepared(trap))
    assert_refused(checkpoint, trap, "optimizer.pt")


def test_the_traps_are_real(trap):
    """Else nothing above would have been shown."""
    code = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
    subprocess.run([sys.executable, "-c", code], input=prepared(trap), check=True)
    assert trap.exists()
