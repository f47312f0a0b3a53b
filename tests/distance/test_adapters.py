"""LoRA against its base: equal to merging it, for every layer PEFT adapts by two factors."""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
import transformers
from peft import LoHaConfig, LoraConfig, get_peft_model
from torch import nn

from hf_relopt.distance.adapters import LowRank, in_folder, is_peft_model, of_peft_model
from hf_relopt.distance.compare import network_distance
from hf_relopt.distance.files import weights_in
from hf_relopt.errors import ConfigError, FormatError
from tests.distance.nets import by_hand, gpt2

# PEFT and Transformers about each other, and what PEFT says of GPT-2's layers and tied weights.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*fan_in_fan_out"),
    pytest.mark.filterwarnings("ignore:.*tie"),
]
# Filled at random: PEFT's B starts at zero.
FILLED = {"init_lora_weights": False, "r": 3, "lora_alpha": 5}
CASES = {
    "plain": {"target_modules": ["c_fc"]},
    "Conv1D and embedding": {"target_modules": ["c_attn", "c_proj", "wte"]},
    "rank-stabilised": {"target_modules": ["c_fc"], "use_rslora": True},
    "patterns": {
        "target_modules": ["c_fc", "c_proj"],
        "rank_pattern": {"h.0.mlp.c_fc": 2},
        "alpha_pattern": {"mlp.c_proj": 11, "^transformer.h.1.attn.c_proj": 3},
    },
    "a layer trained in full": {"target_modules": ["c_fc"], "modules_to_save": ["ln_f"]},
}


def adapted(**options):
    torch.manual_seed(1)
    model = get_peft_model(gpt2(), LoraConfig(**FILLED, **options, fan_in_fan_out=True))
    for name, weight in model.named_parameters():
        if "modules_to_save" in name:
            weight.data.add_(0.1)
    return model


def merged(model):
    return copy.deepcopy(model).merge_and_unload()


def updates(distance):
    return {layer.name: layer.relative_update for layer in distance.layers}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_an_adapter_moves_the_base_as_merging_does(options, tmp_path):
    base, model = gpt2(), adapted(**options)
    base.save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    expected = by_hand(base, merged(model))
    assert sum(r > 0.01 for r in expected.values()) >= 2
    for before, after in (
        (base, model),
        (None, model),
        (base, tmp_path / "adapter"),
        (tmp_path / "base", tmp_path / "adapter"),
        (tmp_path / "base", model),
    ):
        found = network_distance(before, after, norm="both")
        assert updates(found) == pytest.approx(expected, rel=1e-4, abs=1e-7)
        old, new = dict(base.named_parameters()), dict(merged(model).named_parameters())
        for layer in found.matrices:
            change = (new[layer.name].double() - old[layer.name].double()).detach()
            size = float(torch.linalg.matrix_norm(change, ord=2))
            mine = layer.spectral_update * layer.spectral_norm
            assert mine == pytest.approx(size, rel=1e-4, abs=1e-6)


def test_a_convolution_is_adapted_as_its_flattened_filters():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 6, 3)
            self.point = nn.Conv2d(6, 5, 1)

    torch.manual_seed(0)
    base = Net()
    model = get_peft_model(
        copy.deepcopy(base), LoraConfig(**FILLED, target_modules=["conv", "point"])
    )
    expected = by_hand(base, merged(model))
    assert updates(network_distance(base, model)) == pytest.approx(expected, rel=1e-5)


def test_factors_have_the_norms_of_their_product():
    b, a = torch.randn(9, 3), torch.randn(3, 7)
    change = LowRank(b, a, torch.Size((9, 7)))
    product = (b @ a).double()
    assert float(change.square()) == pytest.approx(float(product.square().sum()), rel=1e-6)
    expected = float(torch.linalg.matrix_norm(product, ord=2))
    assert float(change.spectral_norm()) == pytest.approx(expected, rel=1e-6)
    turned = LowRank(b, a, torch.Size((7, 9)), transposed=True)
    where = (slice(2, 5), slice(1, 4))
    torch.testing.assert_close(change.read(where), (b @ a)[where])
    torch.testing.assert_close(turned.read(where), (b @ a).T[where])


def test_two_active_adapters_add_up():
    model = adapted(target_modules=["c_fc"])
    model.add_adapter("second", LoraConfig(**FILLED, target_modules=["c_fc"], fan_in_fan_out=True))
    model.base_model.set_adapter(["default", "second"])
    both = copy.deepcopy(model).merge_and_unload(adapter_names=["default", "second"])
    assert updates(network_distance(None, model)) == pytest.approx(by_hand(gpt2(), both), rel=1e-4)


def test_a_disabled_adapter_changes_nothing():
    model = adapted(target_modules=["c_fc"])
    with model.disable_adapter():
        assert network_distance(None, model).drt == 0


def test_a_merged_adapter_is_in_the_weight_already():
    model = adapted(target_modules=["c_fc"])
    expected = by_hand(gpt2(), merged(model))
    model.merge_adapter()
    assert updates(network_distance(gpt2(), model)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"use_dora": True}, "variant of LoRA"), ({"lora_bias": True}, "variant of LoRA")],
)
def test_what_is_no_product_is_refused(options, words, tmp_path):
    model = get_peft_model(
        nn.Sequential(nn.Linear(4, 4)), LoraConfig(**FILLED, **options, target_modules=["0"])
    )
    with pytest.raises(ConfigError, match=rf"{words}.*merge_and_unload"):
        network_distance(None, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT takes a bias of one dimension for a broken shard
        model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"no scaled product.*merge_and_unload"):
        in_folder(tmp_path, of_peft_model(adapted(target_modules=["c_fc"])).base)


def test_another_kind_of_adapter_is_refused(tmp_path):
    net = nn.Sequential(nn.Linear(4, 4))
    model = get_peft_model(net, LoHaConfig(target_modules=["0"], init_weights=False))
    assert is_peft_model(model)
    with pytest.raises(ConfigError, match="no scaled product"):
        network_distance(None, model)
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="its configuration is LOHA"):
        network_distance(nn.Sequential(nn.Linear(4, 4)), tmp_path)


def test_an_adapter_of_another_base_is_refused(tmp_path):
    adapted(target_modules=["c_fc"]).save_pretrained(tmp_path / "adapter")
    for other in (gpt2(n_layer=1), gpt2(n_embd=32)):
        other.save_pretrained(tmp_path / "base")
        with pytest.raises(ConfigError, match="Pass the base it was trained on"):
            in_folder(tmp_path / "adapter", weights_in(tmp_path / "base"))


def test_a_damaged_folder_is_refused(tmp_path):
    base = weights_in_memory()
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(FormatError, match=r"adapter_config.json cannot be read"):
        in_folder(tmp_path, base)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(FormatError, match=r"but none of adapter_model.safetensors"):
        in_folder(tmp_path, base)
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(FormatError, match="holds no settings"):
        in_folder(tmp_path, base)


def weights_in_memory():
    return of_peft_model(adapted(target_modules=["c_fc"])).base


def test_an_adapter_is_no_network_to_measure_from(tmp_path):
    adapted(target_modules=["c_fc"]).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is an adapter, and before has to be a network"):
        network_distance(tmp_path, gpt2())
    with pytest.raises(ConfigError, match="before is None, but after is no LoRA adapter"):
        network_distance(None, gpt2())


def test_the_base_that_the_folder_names_is_found(tmp_path):
    gpt2().save_pretrained(tmp_path / "base")
    model = adapted(target_modules=["c_fc"])
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    found = network_distance(None, tmp_path / "adapter")
    assert found.drt > 0 and found.before == str(tmp_path / "base")


def test_the_file_of_a_bare_body_is_the_base_of_an_adapter_on_a_model_with_a_head(tmp_path):
    """sentence-transformers keeps `encoder.layer.0`, a classifier calls it `bert.encoder...`."""
    torch.manual_seed(0)
    size = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    body = transformers.BertModel(transformers.BertConfig(**size, intermediate_size=16))
    body.save_pretrained(tmp_path / "body")
    headed = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "body")
    model = get_peft_model(headed, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    with torch.no_grad():
        for name, param in model.named_parameters():
            if "lora_B" in name:
                param.fill_(0.1)
    model.save_pretrained(tmp_path / "adapter")
    found = network_distance(tmp_path / "body", tmp_path / "adapter")
    in_memory = network_distance(tmp_path / "body", model)
    (moved,) = [layer for layer in found.layers if layer.relative_update > 0]
    assert moved.name == "encoder.layer.0.attention.self.query.weight"
    assert found.drt == pytest.approx(in_memory.drt, rel=1e-5) and found.drt > 0
