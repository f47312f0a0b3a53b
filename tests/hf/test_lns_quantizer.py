"""The hub's door: from_pretrained and save_pretrained of weights in codes; Trainers over them."""

from __future__ import annotations

import io
import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    Trainer,
)

from hf_relopt import (
    ConfigError,
    FormatError,
    LNSConfig,
    RelOptTrainer,
    UnsupportedSetup,
    compress,
    decompress,
    network_distance,
)
from hf_relopt.lns.format import FORMATS
from hf_relopt.lns.packing import SCALES
from hf_relopt.lns.tensor import LNSTensor
from tests.hf.tiny import arguments, gpt2, python, rows


@contextmanager
def captured() -> Iterator[io.StringIO]:
    """What Transformers says to its log."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    try:
        yield text
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert type(a) is type(b), name
        assert torch.equal(a.packed, b.packed) if isinstance(a, LNSTensor) else torch.equal(a, b)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model.eval()(input_ids=rows(2)[1]["input_ids"][None]).logits
    return out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    gpt2().save_pretrained(tmp_path / "numbers")
    return tmp_path


@pytest.mark.parametrize("name", FORMATS)
def test_converted_saved_and_loaded_it_is_the_same_to_the_bit(name, folder):
    config = LNSConfig(name)
    model = AutoModelForCausalLM.from_pretrained(folder / "numbers", quantization_config=config)
    weight = model.transformer.wte.weight
    assert isinstance(weight, LNSTensor) and weight.requires_grad
    assert model.lm_head.weight is weight
    same(model, compress(gpt2(), name))
    model.save_pretrained(folder / name)
    file = load_file(folder / name / "model.safetensors")
    assert "lm_head.weight" not in file
    codes = sum(value.nbytes for key, value in file.items() if value.dtype is torch.uint8)
    count = sum(p.numel() for p in model.parameters() if isinstance(p, LNSTensor))
    assert codes == pytest.approx(count * FORMATS[name].bits / 8, rel=0.02)
    said = json.loads((folder / name / "config.json").read_text())["quantization_config"]
    assert (said["quant_method"], said["format"], said["bits"]) == ("lns", name, config.bits)
    loaded = AutoModelForCausalLM.from_pretrained(folder / name)
    same(loaded, model)
    assert torch.equal(logits(loaded), logits(model))
    loaded.save_pretrained(folder / "again")
    again = load_file(folder / "again" / "model.safetensors")
    assert again.keys() == file.keys()
    assert all(torch.equal(again[key], file[key]) for key in file)


def test_the_dtype_is_that_of_what_is_seen(folder):
    compress(gpt2(), "lns12").save_pretrained(folder / "codes")
    model = AutoModelForCausalLM.from_pretrained(folder / "codes", dtype=torch.bfloat16)
    weight = model.transformer.wte.weight
    assert weight.dtype is torch.bfloat16 and weight.scale.dtype is torch.float32
    assert model.transformer.ln_f.weight.dtype is torch.bfloat16
    assert torch.equal(weight.packed, compress(gpt2(), "lns12").transformer.wte.weight.packed)
    ids = torch.tensor([[1, 2, 3]])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3)
    assert out.shape == (1, 6)


def test_device_maps_are_honoured_but_for_the_disk(folder):
    compress(gpt2()).save_pretrained(folder / "codes")
    model = AutoModelForCausalLM.from_pretrained(folder / "codes", device_map={"": "cpu"})
    same(model, compress(gpt2()))
    with pytest.raises(UnsupportedSetup, match="on disk"):
        AutoModelForCausalLM.from_pretrained(
            folder / "codes", device_map={"transformer": "cpu", "lm_head": "disk"}
        )


def test_dequantize_gives_numbers_that_anyone_loads(folder):
    model = compress(gpt2(), "lns8")
    expected = logits(model)
    model.dequantize().save_pretrained(folder / "back")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder / "back")), expected)
    assert "quantization_config" not in json.loads((folder / "back" / "config.json").read_text())


def test_new_heads_are_converted_as_well(folder):
    config = LNSConfig("lns8", skip=["embedding"])
    model = AutoModelForSequenceClassification.from_pretrained(
        folder / "numbers", quantization_config=config, num_labels=3
    )
    assert isinstance(model.score.weight, LNSTensor)
    assert type(model.transformer.wte.weight) is torch.nn.Parameter


def test_without_the_package_a_packed_file_does_not_load(folder):
    """It says so; it is not loaded as noise."""
    compress(gpt2()).save_pretrained(folder / "codes")
    done = python(
        """
        import sys
        from transformers import GPT2LMHeadModel
        assert "hf_relopt" not in sys.modules
        GPT2LMHeadModel.from_pretrained(sys.argv[1])
        """,
        str(folder / "codes"),
    )
    assert done.returncode != 0 and "mismatch" in done.stderr.lower()


def test_with_it_the_import_is_all_that_is_needed(folder):
    compress(gpt2()).save_pretrained(folder / "codes")
    done = python(
        """
        import sys
        import hf_relopt
        from transformers import AutoModelForCausalLM
        model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
        print(type(model.lm_head.weight).__name__)
        """,
        str(folder / "codes"),
    )
    assert done.stdout.strip() == "LNSTensor", done.stderr


def test_a_part_of_a_model_loads_whatever_its_head_was(folder):
    name = "distilbert"
    config = DistilBertConfig(vocab_size=50, dim=16, n_heads=2, hidden_dim=32, n_layers=1)
    model = DistilBertForSequenceClassification(config)
    compress(model, skip=["classifier.*", "pre_classifier.*"]).save_pretrained(folder / name)
    body = AutoModel.from_pretrained(folder / name)
    same(body, model.distilbert)
    again = AutoModelForSequenceClassification.from_pretrained(folder / name)
    same(again, model)


def test_what_the_file_has_in_numbers_stays_numbers(folder):
    """A weight that started at zero, say, or a model that was made with the config of another."""
    model = gpt2()
    proj = model.transformer.h[0].mlp.c_proj.weight
    torch.nn.init.zeros_(proj)
    compress(model)
    torch.nn.init.normal_(proj)
    model.save_pretrained(folder / "codes")
    loaded = AutoModelForCausalLM.from_pretrained(folder / "codes")
    same(loaded, model)
    GPT2LMHeadModel(model.config).save_pretrained(folder / "of_config")
    plain = AutoModelForCausalLM.from_pretrained(folder / "of_config")
    assert not any(isinstance(param, LNSTensor) for param in plain.parameters())


def test_a_head_of_another_size_is_transformers_matter(folder):
    config = DistilBertConfig(vocab_size=50, dim=16, n_heads=2, hidden_dim=32, n_layers=1)
    compress(DistilBertForSequenceClassification(config)).save_pretrained(folder / "codes")
    kind = AutoModelForSequenceClassification
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        kind.from_pretrained(folder / "codes", num_labels=5)
    found = kind.from_pretrained(folder / "codes", num_labels=5, ignore_mismatched_sizes=True)
    assert found.classifier.weight.shape == (5, 16)


def test_a_part_can_be_saved_alone(folder):
    model = compress(gpt2())
    model.transformer.save_pretrained(folder / "body")
    same(AutoModel.from_pretrained(folder / "body"), model.transformer)


def test_a_config_with_codes_can_be_given(folder):
    model = compress(gpt2(), "lns12")
    model.save_pretrained(folder / "codes")
    same(AutoModelForCausalLM.from_pretrained(folder / "codes", config=model.config), model)


def test_resizing_is_refused_with_what_to_do():
    with pytest.raises(ConfigError, match=r"resizes.*hf_relopt\.decompress\(model\)"):
        compress(gpt2()).resize_token_embeddings(60)


def test_experts_are_saved_and_loaded_as_they_are(tmp_path):
    """Transformers would cut them apart for the file, as those of the hub are."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 3}
    model = MixtralForCausalLM(MixtralConfig(vocab_size=50, **sizes, **heads))
    compress(model, "lns10").save_pretrained(tmp_path / "codes")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "codes")
    same(loaded, model)
    assert torch.equal(logits(loaded), logits(model))
    loaded.dequantize().save_pretrained(tmp_path / "numbers")
    numbers = AutoModelForCausalLM.from_pretrained(tmp_path / "numbers")
    assert torch.equal(logits(numbers), logits(model))


@pytest.mark.parametrize("fault", ["cut", "version", "scales", "no scales"])
def test_damaged_folders_are_refused(fault, folder):
    path = folder / "codes"
    compress(gpt2()).save_pretrained(path)
    tensors = load_file(path / "model.safetensors")
    name = "transformer.wpe.weight"
    if fault == "cut":
        tensors[name] = tensors[name][:-3].clone()
    elif fault == "scales":
        tensors[name + "_lns_scales"] = tensors[name + "_lns_scales"] * -1
    elif fault == "no scales":
        del tensors[name + "_lns_scales"]
    else:
        config = json.loads((path / "config.json").read_text())
        config["quantization_config"]["version"] = 99
        (path / "config.json").write_text(json.dumps(config))
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    # Transformers collects what goes wrong with each weight in a report, and ends with that.
    words = {
        "cut": "is cut off",
        "scales": "are not all positive",
        "version": "version 99",
        "no scales": "its scales are not in the file",
    }
    with pytest.raises((RuntimeError, FormatError)) as caught, captured() as report:
        AutoModelForCausalLM.from_pretrained(path)
    assert words[fault] in report.getvalue() + str(caught.value)


def trained(
    kind: type, folder: Path, model: Any, resume: str | None = None, **given: Any
) -> Trainer:
    args = arguments(
        folder, optim="integer_madam", learning_rate=0.02, save_strategy="steps", save_steps=2
    )
    made = kind(model=model, args=args, train_dataset=rows(), **given)
    made.train(resume_from_checkpoint=resume)
    return made


@pytest.mark.parametrize("kind", [Trainer, RelOptTrainer])
def test_a_run_that_is_resumed_ends_with_the_same_bits(kind, tmp_path):
    whole = trained(kind, tmp_path, compress(gpt2(), "lns10"))
    halfway = str(tmp_path / "checkpoint-2")
    resumed = trained(kind, tmp_path, compress(gpt2(seed=1), "lns10"), halfway)
    same(whole.model, resumed.model)
    weight = whole.model.transformer.wte.weight
    assert not torch.equal(weight.packed, compress(gpt2(), "lns10").transformer.wte.weight.packed)
    same(AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-4"), whole.model)


def test_relopt_trainer_converts_when_asked(tmp_path):
    made = trained(RelOptTrainer, tmp_path, gpt2(), lns_format="lns8")
    logged = made.state.log_history[0]
    assert logged["at_smallest_level"] < 0.1 and logged["at_zero"] == 0
    assert math.isfinite(logged["loss"])
    model_init = trained(
        RelOptTrainer, tmp_path / "init", None, model_init=lambda: gpt2(), lns_format="lns8"
    )
    assert isinstance(model_init.model.transformer.wte.weight, LNSTensor)
    with pytest.raises(ConfigError, match="format is 'lns9'"):
        RelOptTrainer(gpt2(), arguments(tmp_path), lns_format="lns9")


@pytest.mark.parametrize("kind", [Trainer, RelOptTrainer])
def test_nobody_else_converts(kind, tmp_path):
    with pytest.raises(ConfigError, match=r"hf_relopt\.compress\(model, .*LNSConfig"):
        trained(kind, tmp_path, gpt2())


def test_other_optimizers_are_refused_before_a_code_is_lost(tmp_path):
    model = compress(gpt2())
    args = arguments(tmp_path, optim="madam", learning_rate=0.02)
    with pytest.raises(ConfigError, match="is stored in lns8, whose codes madam cannot step"):
        Trainer(model=model, args=args, train_dataset=rows()).train()
    same(model, compress(gpt2()))
    assert isinstance(model, GPT2LMHeadModel)


def test_the_plan_and_the_card_say_how_weights_are_stored(tmp_path, caplog):
    with caplog.at_level("INFO", "hf_relopt"):
        made = trained(RelOptTrainer, tmp_path, gpt2(), lns_format="lns10")
    made.save_model()
    card = (tmp_path / "README.md").read_text()
    assert "import hf_relopt  # knows weights in lns10\n" in card
    assert "| precision | lns10, beside float32 |" in card
    assert "| matrix | integer_madam, lns10 |" in card
    assert "integer_madam, lns10" in caplog.text


# Of some sizes bytes lie in one shard and their scales in another.
@pytest.mark.parametrize("shards", ["5GB", "5KB", "3KB", "2KB"])
def test_files_in_codes_are_compared_as_the_numbers_they_stand_for(folder, shards):
    model = compress(gpt2(), "lns12")
    model.save_pretrained(folder / "codes", max_shard_size=shards)
    found = network_distance(folder / "numbers", folder / "codes")
    models = network_distance(gpt2(), model)
    assert found.depth == models.depth == 6
    assert 0 < found.drt == pytest.approx(models.drt)
    assert network_distance(folder / "codes", decompress(model)).drt == 0


def test_of_files_in_codes_the_sound_ones_are_compared(folder):
    compress(gpt2(), "lns12").save_pretrained(folder / "codes", max_shard_size="3KB")
    shards = sorted((folder / "codes").glob("model-*.safetensors"))
    assert len(shards) > 2
    for lost in shards:
        whole = lost.read_bytes()
        lost.write_bytes(whole[:20])
        found = network_distance(folder / "numbers", folder / "codes")
        assert found.partial and found.drt < 0.1
        lost.write_bytes(whole)


def test_files_in_codes_that_lack_something_are_not_compared(folder):
    compress(gpt2()).save_pretrained(folder / "codes")
    file = folder / "codes" / "model.safetensors"
    with safe_open(file, "pt") as opened:
        noted = opened.metadata()
    state = load_file(file)
    with pytest.raises(ConfigError, match="in codes, as bytes"):
        network_distance(load_file(folder / "numbers" / "model.safetensors"), state)
    for change, message in (
        ((state, {"format": "pt"}), r"in codes without the note of their shapes"),
        ((state, {**noted, "lns": "?"}), "later hf_relopt"),
        (
            ({k: v for k, v in state.items() if not k.endswith(SCALES)}, noted),
            "their scales are not there",
        ),
    ):
        save_file(change[0], file, change[1])
        with pytest.raises(FormatError, match=message):
            network_distance(folder / "numbers", folder / "codes")


# PEFT and Transformers about each other.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")
@pytest.mark.parametrize("optim", ["fromage", "madam"])
def test_adapters_train_over_weights_in_codes(tmp_path, optim):
    peft = pytest.importorskip("peft")
    base = compress(gpt2())
    config = peft.LoraConfig(
        r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True
    )
    model = peft.get_peft_model(base, config)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    args = arguments(tmp_path, optim=optim, learning_rate=0.02)
    RelOptTrainer(model=model, args=args, train_dataset=rows()).train()
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]) == ("lora_" not in name), name
    frozen = base.transformer.h[0].attn.c_attn.base_layer.weight
    assert isinstance(frozen, LNSTensor) and not frozen.requires_grad
