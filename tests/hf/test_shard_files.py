"""Folders of torch.distributed.checkpoint: what is damaged or prepared in them is a fault."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader

from hf_relopt.hf.checkpoints import find_fault
from hf_relopt.hf.shard_metadata import read_metadata
from tests.hf.prepared import Makes, assert_refused, prepared

# torch says that it saves from a single process.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


def test_metadata_beside_the_files_is_looked_at(checkpoint, trap):
    """Some releases of Accelerate read it there, if the folder's name has "optimizer" in it."""
    (checkpoint / ".metadata").write_bytes(prepared(trap))
    assert_refused(checkpoint, trap, ".metadata", "mkdir")


def test_a_folder_that_fsdp_did_not_write_is_left_alone(checkpoint):
    (checkpoint / "optimizer_plots").mkdir()
    (checkpoint / "optimizer_plots" / "plot.svg").write_text("")
    assert find_fault(checkpoint) is None


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
    entries = read_metadata(checkpoint / "optimizer_0").entries
    entry = next(entry for entry in entries if "second_moment" in entry.name)
    middle = entry.offset + entry.length // 2
    content[middle : middle + 64] = bytes(64)
    file.write_bytes(content)
    assert_refused(checkpoint, trap, "checksum")


def test_the_traps_are_real(trap):
    """Else nothing above would have been shown."""
    code = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
    subprocess.run([sys.executable, "-c", code], input=prepared(trap), check=True)
    assert trap.exists()
