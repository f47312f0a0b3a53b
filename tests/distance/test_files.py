"""Weights in files and folders: what is found, and what is said of what is missing or damaged."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from hf_relopt.distance.files import FileWeights, is_adapter, locate, weights_in
from hf_relopt.distance.weights import of_module
from hf_relopt.errors import ConfigError, FormatError
from tests.distance.nets import gpt2

WHOLE = (slice(None), slice(None))


@pytest.fixture
def model():
    return gpt2()


@pytest.fixture
def folder(tmp_path, model):
    model.save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


@pytest.fixture
def sharded(tmp_path, model):
    model.save_pretrained(tmp_path / "shards", max_shard_size="5KB")
    return tmp_path / "shards"


def test_a_folder_a_file_and_shards_hold_the_weights_of_the_module(model, folder, sharded):
    named = dict(model.named_parameters())
    assert len(list(sharded.glob("*.safetensors"))) > 2
    for source in (folder, sharded, folder / "model.safetensors"):
        weights = weights_in(source)
        assert dict(weights.shapes) == dict(of_module(model).shapes)
        for name in ("transformer.wte.weight", "transformer.h.1.mlp.c_fc.weight"):
            assert torch.equal(weights.read(name, WHOLE), named[name])
            where = (slice(3, 7), slice(2, 5))
            assert torch.equal(weights.read(name, where), named[name][where])


@pytest.mark.parametrize("name", ["pytorch_model.bin", "anything.pt"])
def test_files_of_torch_are_read_as_well(model, tmp_path, name):
    torch.save(model.state_dict(), tmp_path / name)
    source = tmp_path if name.startswith("pytorch") else tmp_path / name
    assert weights_in(source).shapes == of_module(model).shapes


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module"])
def test_the_weights_in_a_checkpoint_of_a_training_loop(model, tmp_path, key):
    torch.save({key: model.state_dict(), "epoch": 3, "optimizer": {}}, tmp_path / "x.ckpt.pt")
    assert weights_in(tmp_path / "x.ckpt.pt").shapes == of_module(model).shapes


def test_a_checkpoint_without_weights_is_refused(tmp_path):
    torch.save({"epoch": 3, "optimizer": {}}, tmp_path / "x.pt")
    with pytest.raises(ConfigError, match="its entry 'epoch' holds int, not a tensor"):
        weights_in(tmp_path / "x.pt")


def test_torch_files_in_shards(model, tmp_path):
    state = model.state_dict()
    names = [name for name in state if name != "lm_head.weight"]
    parts = {"a.bin": [*names[:5], "lm_head.weight"], "b.bin": names[5:]}
    for file, held in parts.items():
        torch.save({name: state[name] for name in held}, tmp_path / file)
    weight_map = {name: file for file, held in parts.items() for name in held}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert weights_in(tmp_path).shapes.keys() == of_module(model).shapes.keys()


def test_integers_and_packed_formats_are_named_as_such(tmp_path):
    tensors = {"w": torch.ones(2, 2), "ids": torch.arange(3), "n.running_var": torch.ones(2)}
    save_file(tensors, tmp_path / "x.safetensors")
    weights = weights_in(tmp_path / "x.safetensors")
    assert list(weights.shapes) == ["w"]
    assert weights.others == {"ids": "stored as I64", "n.running_var": "a buffer"}


def test_a_scalar_is_read(tmp_path):
    save_file({"scale": torch.tensor(2.5)}, tmp_path / "x.safetensors")
    assert weights_in(tmp_path / "x.safetensors").read("scale", ()) == 2.5


def truncate(path, share=0.6):
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])


def test_a_truncated_file_is_refused(folder):
    truncate(folder / "model.safetensors")
    with pytest.raises(FormatError, match=r"model.safetensors cannot be read.*or a truncated one"):
        weights_in(folder)


def test_of_several_shards_the_readable_ones_stay(sharded):
    broken = sorted(sharded.glob("*.safetensors"))[1]
    before = len(weights_in(sharded).shapes)
    truncate(broken)
    weights = weights_in(sharded)
    assert isinstance(weights, FileWeights) and list(weights.damaged) == [broken]
    assert 0 < len(weights.shapes) < before


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "x.pt"])
def test_a_file_of_something_else_is_refused(tmp_path, name):
    (tmp_path / name).write_text("This is a text.")
    with pytest.raises(FormatError, match=f"{name} cannot be read"):
        weights_in(tmp_path / name)


def test_a_torch_file_without_a_dict_is_refused(tmp_path):
    torch.save(torch.ones(3), tmp_path / "x.pt")
    with pytest.raises(FormatError, match=r"x.pt holds a Tensor, not a state dict"):
        weights_in(tmp_path / "x.pt")


def test_a_missing_shard_is_named(sharded):
    gone = sorted(sharded.glob("*.safetensors"))[0]
    gone.unlink()
    with pytest.raises(FormatError, match=f"is incomplete: .* names {gone.name}"):
        weights_in(sharded)


def test_a_damaged_index_is_named(sharded):
    (sharded / "model.safetensors.index.json").write_text('{"weight_map": [')
    with pytest.raises(FormatError, match=r"index.json is damaged"):
        weights_in(sharded)


def test_a_folder_without_weights_says_where_they_are(tmp_path, folder):
    with pytest.raises(FormatError, match=r"holds no weights. Pass a folder that save_pretrained"):
        weights_in(tmp_path)
    for step in (9, 10):
        shutil.copytree(folder, tmp_path / "run" / f"checkpoint-{step}")
    with pytest.raises(FormatError, match=r"newest checkpoint is .*checkpoint-10: pass that"):
        weights_in(tmp_path / "run")
    (tmp_path / "dcp" / "pytorch_model_fsdp_0").mkdir(parents=True)
    (tmp_path / "dcp" / "pytorch_model_fsdp_0" / ".metadata").touch()
    with pytest.raises(FormatError, match="distributed format: merge it first"):
        weights_in(tmp_path / "dcp")


@pytest.mark.parametrize("source", ["./nowhere", "/no/such/folder", "a/b/c", "model.safetensors"])
def test_a_path_that_does_not_exist_is_no_name_of_the_hub(source):
    with pytest.raises(FormatError, match="does not exist"):
        locate(source)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("org/model-that-is-not-here", "the hub cannot be reached, and its cache"),
        ("org/model@v2", "the hub cannot be reached, and its cache"),
        ("what is this", "no name of a model of the hub"),
    ],
)
def test_a_model_of_the_hub_that_cannot_be_had(source, words):
    with pytest.raises(FormatError, match=words):
        locate(source)


def test_a_model_in_the_hubs_cache_is_found(tmp_path, monkeypatch, folder):
    """The layout of the cache is the hub's own: a folder per commit, and a file that names it."""
    cached = tmp_path / "cache" / "models--org--tiny"
    shutil.copytree(folder, cached / "snapshots" / "abc123")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "cache")
    )
    assert weights_in(locate("org/tiny")).shapes == weights_in(folder).shapes


def test_an_adapter_is_told_from_a_model(tmp_path, folder):
    assert not is_adapter(folder) and not is_adapter(folder / "model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{}")
    assert is_adapter(tmp_path)
