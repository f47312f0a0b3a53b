"""A model from a folder to a folder in codes: what is written, what is said, what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2LMHeadModel,
    GPT2Model,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)
from transformers.utils import logging as transformers_logging

from hf_relopt import compress
from hf_relopt.errors import ConfigError, FormatError
from hf_relopt.hf import compress_folder as module
from hf_relopt.hf.compress_folder import compress_folder
from hf_relopt.hf.data_quality import quality_on
from hf_relopt.lns.tensor import LNSTensor
from tests.hf.compress_inputs import (
    classifier,
    language_model,
    nothing_new,
    sentences,
    text,
    words,
)
from tests.hf.tiny import gpt2


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    language_model(place / "gpt2")
    classifier(place / "bert")
    return place


@pytest.fixture
def copied(models, tmp_path):
    """A copy of the language model, to be damaged."""
    return shutil.copytree(models / "gpt2", tmp_path / "model")


def in_codes(model):
    return {name: p for name, p in model.named_parameters() if isinstance(p, LNSTensor)}


@pytest.mark.parametrize(("form", "dtype"), [("lns8", "float32"), ("lns10", "bfloat16")])
def test_the_folder_holds_what_compress_makes(form, dtype, models, tmp_path):
    dtype = getattr(torch, dtype)
    given = GPT2LMHeadModel.from_pretrained(models / "gpt2", dtype=dtype)
    given.save_pretrained(tmp_path / "given")
    words().save_pretrained(tmp_path / "given")
    before = {name: p.detach().clone() for name, p in given.named_parameters()}
    compress(given, form)

    found = compress_folder(str(tmp_path / "given"), tmp_path / "out", form)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    codes = in_codes(again)
    assert again.dtype is dtype and codes.keys() == in_codes(given).keys()
    for name, param in again.named_parameters():
        own = given.get_parameter(name)
        pairs = [(param, own)]
        if name in codes:
            pairs = [(param.packed, own.packed), (param.scale, own.scale)]
        assert all(torch.equal(one, other) for one, other in pairs), name
    ids = torch.arange(8).view(1, 8)
    assert torch.equal(again(ids).logits, given.eval()(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("w3 w4")["input_ids"] == [3, 4]

    # The report, by hand.
    assert (found.kind, found.form.name, found.notes) == ("GPT2LMHeadModel", form, ())
    assert [each.name for each in found.errors] == list(codes)
    lost = {n: (codes[n].dequantize().double() - before[n].double()).norm() for n in codes}
    for each in found.errors:
        size = before[each.name].double().norm()
        assert each.relative == pytest.approx(float(lost[each.name] / size))
    every = torch.stack([before[name].double().norm() for name in codes]).norm()
    assert found.total.relative == pytest.approx(
        float(torch.stack([*lost.values()]).norm() / every)
    )
    assert found.before == sum(p.numel() for p in before.values()) * dtype.itemsize
    stored = sum(p.packed.numel() + 4 * p.scale.numel() for p in codes.values())
    numbers = sum(before[name].numel() for name in before.keys() - codes.keys())
    assert found.after == stored + numbers * dtype.itemsize
    assert found.total.bits == 8 * stored / sum(p.numel() for p in codes.values())
    file = tmp_path / "out" / "model.safetensors"
    assert found.files == {file.name: file.stat().st_size}
    assert found.quality is None
    assert nothing_new(tmp_path, {"given", "out"})


def test_skip_leaves_numbers(models, tmp_path):
    found = compress_folder(str(models / "gpt2"), tmp_path / "out", skip=["embedding", "*.c_fc.*"])
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert [each.name for each in found.errors] == list(in_codes(again))
    assert {name.split(".")[-2] for name in in_codes(again)} == {"c_attn", "c_proj"}
    assert torch.equal(again.transformer.wte.weight, gpt2().transformer.wte.weight)


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_quality_is_measured_before_and_after(kind, models, tmp_path):
    make = {"gpt2": text, "bert": sentences}[kind]
    file = make(tmp_path / "data", 45)
    said = []
    found = compress_folder(
        str(models / kind), tmp_path / "out", "lns8", data=file, tell=said.append
    ).quality
    auto = AutoModelForCausalLM if kind == "gpt2" else AutoModelForSequenceClassification
    before = auto.from_pretrained(models / kind)
    after = auto.from_pretrained(tmp_path / "out")
    quality = quality_on(file, type(before).__name__, before.config, words())
    assert (found.before, found.after) == (quality.of(before), quality.of(after))
    assert found.before != found.after or kind == "bert"
    assert sum(found.on in line for line in said) == 2


def test_a_body_without_a_class_is_what_auto_model_makes_of_it(copied, tmp_path):
    config = json.loads((copied / "config.json").read_text())
    del config["architectures"]
    (copied / "config.json").write_text(json.dumps(config))
    found = compress_folder(str(copied), tmp_path / "out")
    assert found.kind == "GPT2Model"
    assert isinstance(AutoModel.from_pretrained(tmp_path / "out"), GPT2Model)


def test_a_processor_of_images_is_saved(tmp_path):
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    shape = {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    ViTForImageClassification(ViTConfig(**size, **shape)).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "vit")
    found = compress_folder(str(tmp_path / "vit"), tmp_path / "out")
    assert "vit.embeddings.patch_embeddings.projection.weight" in {e.name for e in found.errors}
    again = ViTImageProcessor.from_pretrained(tmp_path / "out")
    assert dict(again.size)["height"] == 8
    assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_weights_that_files_lack_or_have_too_much_are_named(copied, tmp_path):
    held = load_file(copied / "model.safetensors")
    held["transformer.strange.weight"] = held.pop("transformer.wpe.weight")
    save_file(held, copied / "model.safetensors", metadata={"format": "pt"})
    found = compress_folder(str(copied), tmp_path / "out")
    assert len(found.notes) == 2
    assert found.notes[0].startswith("transformer.wpe.weight: not in the files of ")
    assert "transformer.strange.weight: in the files of " in found.notes[1]


def changed(copied, **given):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, **given}))


def test_models_that_are_refused(copied, models, tmp_path):
    def refused(error, message, source=copied, **given):
        before = {each.name for each in tmp_path.iterdir()}
        with pytest.raises(error, match=message) as caught:
            compress_folder(str(source), tmp_path / "out", **given)
        assert "\n" not in str(caught.value)
        assert nothing_new(tmp_path, before)

    refused(ConfigError, "format is 'lns9'.*Did you mean", format="lns9")
    refused(ConfigError, "'lm_heat' is no|skip has 'lm_heat'", skip=["lm_heat"])
    refused(ConfigError, "no weight to store", skip=["matrix", "embedding", "head"])
    refused(ConfigError, "nowhere.txt is no file", data=tmp_path / "nowhere.txt")
    refused(FormatError, "does not exist", source=tmp_path / "nowhere")
    refused(FormatError, "user/nowhere cannot be loaded as a model", source="user/nowhere")
    refused(FormatError, "u/n@main cannot be loaded as a model", source="u/n@main")
    refused(ConfigError, "is a file", source=copied / "config.json")
    (tmp_path / "empty").mkdir()
    refused(FormatError, "empty holds no model", source=tmp_path / "empty")
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    refused(ConfigError, "holds an adapter of PEFT", source=tmp_path / "empty")

    compress_folder(str(models / "gpt2"), tmp_path / "codes", "lns12")
    refused(ConfigError, "stored in lns12 already", source=tmp_path / "codes")
    changed(copied, quantization_config={"quant_method": "gptq", "bits": 4})
    refused(ConfigError, "is quantized by gptq")
    changed(copied, quantization_config=None, architectures=["MyOwnModel"])
    refused(ConfigError, "is a MyOwnModel, which transformers .* has not")
    changed(copied, architectures=["AutoTokenizer"])
    refused(ConfigError, "is a AutoTokenizer")
    changed(copied, architectures=["GPT2LMHeadModel"])

    weights = copied / "model.safetensors"
    held = load_file(weights)
    held["transformer.h.0.mlp.c_fc.weight"][2, 2] = float("nan")
    save_file(held, weights, metadata={"format": "pt"})
    refused(ConfigError, r"transformer\.h\.0\.mlp\.c_fc\.weight of .* NaN or infinite")
    weights.write_bytes(weights.read_bytes()[:-40])
    refused(FormatError, "cannot be loaded as a model: ")
    weights.unlink()
    refused(FormatError, "cannot be loaded as a model: .*model.safetensors")
    (copied / "tokenizer.json").write_text("{")
    refused(FormatError, "The tokenizer of .* cannot be loaded: ")


def test_what_cannot_be_written_or_does_not_come_back_leaves_nothing(models, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    source, place = str(models / "gpt2"), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(GPT2LMHeadModel, "save_pretrained", full)
        with pytest.raises(FormatError, match=r"cannot be written: .*No space left"):
            compress_folder(source, place)

    def damaged(name, value):
        def write(opened, model, folder):
            opened_write(opened, model, folder)
            held = load_file(folder / "model.safetensors")
            held[name] = value
            save_file(held, folder / "model.safetensors", metadata={"format": "pt"})

        return write

    opened_write = module._write
    bias, table = "transformer.ln_f.bias", "transformer.wpe.weight"
    for name, value, message in (
        (bias, torch.ones(16), f"{bias} is not there as it was"),
        (table, torch.zeros(3, dtype=torch.uint8), "it cannot be loaded"),
    ):
        monkeypatch.setattr(module, "_write", damaged(name, value))
        with pytest.raises(FormatError, match=f"does not come back: {message}"):
            compress_folder(source, place)
    assert nothing_new(tmp_path, set())


def test_transformers_speaks_afterwards_as_before(models, tmp_path):
    transformers_logging.enable_progress_bar()
    level = transformers_logging.get_verbosity()
    with pytest.raises(ConfigError):
        compress_folder(str(models / "gpt2"), tmp_path / "out", skip=["nothing.like.it"])
    assert transformers_logging.is_progress_bar_enabled()
    assert transformers_logging.get_verbosity() == level
