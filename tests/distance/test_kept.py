"""Initial weights that are kept: copies, and files that are read from any number of ranks."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from hf_relopt.distance import kept
from hf_relopt.distance.kept import Copies, KeptWeights, RenamedWeights, write
from hf_relopt.distance.weights import HeldWeights
from hf_relopt.errors import FormatError

PARAMS = {
    "a.weight": torch.arange(35.0).view(7, 5),
    "a.bias": torch.arange(5.0),
    "scale": torch.tensor(3.0),
}
SHAPES = {name: param.shape for name, param in PARAMS.items()}


def all_of(shape: torch.Size) -> tuple[slice, ...]:
    return tuple(slice(0, n) for n in shape)


def test_copies_are_exact_and_their_own():
    params = {n: p.clone().to(torch.bfloat16 if n == "a.bias" else p) for n, p in PARAMS.items()}
    made = Copies(params, None, low=False)
    for param in params.values():
        param.zero_()
    for name, param in PARAMS.items():
        assert torch.equal(made.tensors[name].float(), param), name
    assert made.tensors["a.bias"].dtype == torch.bfloat16


def test_copies_in_bfloat16_round_what_is_wider():
    made = Copies({"w": torch.tensor([1.001, 2.0])}, None, low=True)
    assert made.tensors["w"].dtype == torch.bfloat16
    assert made.tensors["w"].tolist() == [1.0, 2.0]


def test_copies_of_a_source_have_its_values_and_the_weights_form(monkeypatch):
    monkeypatch.setattr(kept, "PIECE", 6)
    source = HeldWeights({f"model.{name}": param for name, param in PARAMS.items()}, "source")
    named = RenamedWeights(source, {name: f"model.{name}" for name in PARAMS})
    made = Copies({n: torch.zeros_like(p).double() for n, p in PARAMS.items()}, named, low=False)
    for name, param in PARAMS.items():
        assert made.tensors[name].dtype == torch.float64
        assert torch.equal(made.tensors[name].float(), param)


def test_what_is_written_is_read_again(tmp_path):
    write(tmp_path / "kept", PARAMS, 0, 1, "run")
    found = KeptWeights(tmp_path / "kept", SHAPES, "run")
    for name, param in PARAMS.items():
        assert torch.equal(found.read(name, all_of(param.shape)), param)
    assert torch.equal(
        found.read("a.weight", (slice(2, 4), slice(1, 3))), PARAMS["a.weight"][2:4, 1:3]
    )
    assert not list((tmp_path / "kept").glob(".*"))


def test_pieces_are_put_together_from_the_shards_of_several_ranks(tmp_path):
    """As three ranks leave them, one of them twice, as replicas do."""
    whole = PARAMS["a.weight"]
    for rank, (begin, end) in enumerate([(0, 3), (3, 6), (6, 7), (3, 6)]):
        said = {"run": "run", "offsets": f'{{"a.weight": [{begin}, 0]}}'}
        file = tmp_path / f"initial-{rank:05d}-of-00004.safetensors"
        save_file({"a.weight": whole[begin:end].clone()}, file, metadata=said)
    found = KeptWeights(tmp_path, {"a.weight": whole.shape}, "run")
    for begin in range(7):
        for end in range(begin + 1, 8):
            where = (slice(begin, end), slice(1, 5))
            assert torch.equal(found.read("a.weight", where), whole[begin:end, 1:5])


def test_a_rank_without_anything_of_its_own_writes_nothing(tmp_path):
    write(tmp_path, PARAMS, 1, 2, "run")
    assert not list(tmp_path.glob("*.safetensors"))


def test_missing_other_and_damaged_files_are_told_apart(tmp_path):
    with pytest.raises(FormatError, match=r"are missing.*initial="):
        KeptWeights(tmp_path, SHAPES, "run")
    write(tmp_path, PARAMS, 0, 1, "another")
    with pytest.raises(FormatError, match=r"are those of another run.*initial="):
        KeptWeights(tmp_path, SHAPES, "run")
    with pytest.raises(FormatError, match=r"are missing \(b\)"):
        KeptWeights(tmp_path, {**SHAPES, "b": torch.Size([2])}, "another")
    file = next(tmp_path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(FormatError, match=r"cannot be read.*initial="):
        KeptWeights(tmp_path, SHAPES, "another")
