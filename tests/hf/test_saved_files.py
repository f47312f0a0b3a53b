"""Single files of a checkpoint: damage is noticed, and nothing in them runs."""

from __future__ import annotations

import pytest
import torch

from hf_relopt.hf.checkpoints import find_fault
from tests.hf.damage import DEEP, a_folder, holding, saved
from tests.hf.prepared import Makes, assert_refused, prepared


@pytest.mark.parametrize("offset", range(0, 100, 4))
def test_a_lost_block_is_noticed_wherever_it_is(offset, run):
    """Every byte of an archive is covered by a checksum, a signature or a length."""
    path = run / "checkpoint-4" / "optimizer.pt"
    content = bytearray(path.read_bytes())
    first = len(content) * offset // 100
    lost = content[first : first + 512]
    if not any(lost):
        return  # torch pads with zeros: nothing is lost
    content[first : first + 512] = bytes(len(lost))
    path.write_bytes(content)
    assert "optimizer.pt" in find_fault(run / "checkpoint-4")


def test_archives_without_checksums_are_not_taken_for_damaged(run):
    path = run / "checkpoint-4" / "optimizer.pt"
    saved = torch.load(path, weights_only=True)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(saved, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert find_fault(run / "checkpoint-4") is None


@pytest.mark.parametrize("content", [
    "null", "[]", "{}", DEEP, '{"weight_map": null}', '{"weight_map": {}}', '{"weight_map": []}',
    '{"weight_map": {"w": 3}}', '{"weight_map": {"w": "../model.safetensors"}}',
    '{"weight_map": {"w": "/etc/hostname"}}', '{"weight_map": {"w": "missing.safetensors"}}',
])  # fmt: skip
@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_a_damaged_index_is_a_fault(content, kind, run):
    (run / "checkpoint-4" / f"{kind}.index.json").write_text(content)
    assert f"{kind}.index.json" in find_fault(run / "checkpoint-4")


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_files_that_an_index_names_are_looked_at(kind, run):
    folder = run / "checkpoint-4"
    (folder / "model.safetensors").unlink()
    (folder / f"{kind}.index.json").write_text('{"weight_map": {"w": "foo.bin"}}')
    for damage in (holding(b""), holding(b"text"), saved([1]), a_folder):
        damage(folder / "foo.bin")
        assert "foo.bin" in find_fault(folder)


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
