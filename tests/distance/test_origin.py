"""Where a run began: a checkpoint, the weights at hand, or what its folder keeps of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_relopt.distance import origin
from hf_relopt.distance.ball import held_as
from hf_relopt.distance.kept import Copies
from hf_relopt.errors import ConfigError, FormatError
from tests.distance.nets import MINILM


def params() -> dict[str, torch.Tensor]:
    return {"body.weight": torch.arange(12.0).view(3, 4), "head.weight": torch.ones(2, 3)}


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "base.safetensors"
    save_file({"body.weight": 2 * params()["body.weight"], "other": torch.ones(1)}, path)
    return path


@pytest.mark.parametrize("copy", ["exact", "bfloat16", "disk"])
def test_a_checkpoint_gives_its_values_and_says_what_it_lacks(stored, copy):
    found = origin.of_checkpoint(str(stored), params(), copy)
    assert found.absent == ("head.weight",) and found.run is None
    assert isinstance(found.weights, Copies) == (copy != "disk")
    assert list(found.weights.shapes) == ["body.weight"]
    [square] = origin.squares_of([held_as("body.weight", params()["body.weight"])], found.weights)
    assert float(square) == 4 * sum(n * n for n in range(12))


def test_a_checkpoint_of_another_shape_or_network_is_refused(stored, tmp_path):
    with pytest.raises(ConfigError, match=r"body.weight has another shape.*free="):
        origin.of_checkpoint(
            str(stored), {"body.weight": torch.ones(5, 4), "other": torch.ones(1)}, "exact"
        )
    with pytest.raises(ConfigError, match="no weight in common"):
        origin.of_checkpoint(str(MINILM), params(), "exact")
    with pytest.raises(FormatError, match="does not exist"):
        origin.of_checkpoint(str(tmp_path / "nothing.safetensors"), params(), "exact")


@pytest.mark.parametrize("copy", ["exact", "bfloat16", "disk"])
def test_a_resumed_run_has_the_weights_of_its_beginning(tmp_path, copy):
    weights = params()
    began = origin.of_now(weights, tmp_path / "kept", copy, weights)
    for weight in weights.values():
        weight.zero_()
    resumed = origin.of_folder(weights, tmp_path / "kept", copy, began.run)
    for name, weight in params().items():
        where = tuple(slice(0, n) for n in weight.shape)
        for found in (began, resumed):
            assert torch.equal(found.weights.read(name, where).float(), weight)


def test_other_weights_are_another_run(tmp_path):
    first = origin.of_now(params(), tmp_path, "exact", params()).run
    assert origin.of_now(params(), None, "exact", params()).run == first
    others = {name: weight + 1 for name, weight in params().items()}
    origin.of_now(others, tmp_path, "exact", others)  # which takes the folder
    with pytest.raises(FormatError, match="another run"):
        origin.of_folder(params(), tmp_path, "exact", first)


def test_what_was_not_kept_is_asked_for(tmp_path):
    with pytest.raises(ConfigError, match=r"no folder was given.*initial="):
        origin.of_folder(params(), None, "exact", "run")
    with pytest.raises(ConfigError, match=r"written without them.*initial="):
        origin.of_folder(params(), tmp_path, "exact", None)
    with pytest.raises(ConfigError, match=r"copy is 'disk' without a folder.*folder="):
        origin.of_now(params(), None, "disk", params())
