"""Roles by class, name and shape: parametrizations, biases, tables, and what no input meets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.nn.utils import parametrizations

from hf_relopt import Fromage, create_optimizer, plan
from tests.oracles.frame import frame
from tests.tensors import assert_near_oracle, gradient, same_bits, state_of, to_numpy

SPECTRAL = "fromage_spectral"
ENTRIES = "fromage, entry by entry"


def plans(model: nn.Module, optim: str = SPECTRAL) -> dict[str, tuple[str, str]]:
    """Role and what it follows, by name."""
    chosen = plan(model, optim, 0.01)
    words = {entry.name: chosen._follows(entry) for entry in chosen.entries}
    return {
        entry.name: (entry.role, words[entry.name].removesuffix(", from zero by min_scale"))
        for entry in chosen.entries
    }


# --- parametrizations ---------------------------------------------------------------------


class Holds(nn.Module):
    """Two layers under names that patterns can say."""

    def __init__(self, make: Callable[[nn.Module], nn.Module], layer: nn.Module) -> None:
        super().__init__()
        self.other = nn.Linear(4, 4)
        self.conv = make(layer)


MADE: dict[str, tuple[Callable[[nn.Module], nn.Module], str, str | None]] = {
    "weight_norm": (parametrizations.weight_norm, "parametrizations.weight.original1", "original0"),
    "spectral_norm": (parametrizations.spectral_norm, "parametrizations.weight.original", None),
    "old spectral_norm": (nn.utils.spectral_norm, "weight_orig", None),
}
LAYERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "Conv1d": (lambda: nn.Conv1d(6, 8, 3), "conv"),
    "Conv2d": (lambda: nn.Conv2d(6, 8, 3), "conv"),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(6, 8, 3), "conv"),
    "Linear": (lambda: nn.Linear(6, 8), "matrix"),
    "Embedding": (lambda: nn.Embedding(6, 8), "embedding"),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("made", MADE)
def test_what_a_parametrization_stores_is_judged_as_the_weight(made: str, layer: str) -> None:
    make, stored, size = MADE[made]
    build, role = LAYERS[layer]
    torch.manual_seed(0)
    model = Holds(make, build())
    found = plans(model)
    follows = "rms, by row" if role == "embedding" else "spectral"
    assert found[f"conv.{stored}"] == (role, f"fromage, {follows}")
    if size is not None:
        assert found[f"conv.parametrizations.weight.{size}"] == ("vector", ENTRIES)
    plain = plans(Holds(lambda it: it, build()))
    assert plain["conv.weight"] == found[f"conv.{stored}"]


# torch warns that this one goes; models that were written with it are still there.
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_weight_norm_of_the_old_kind_too() -> None:
    found = plans(Holds(nn.utils.weight_norm, nn.Conv1d(6, 8, 3)))
    assert found["conv.weight_v"] == ("conv", "fromage, spectral")
    assert found["conv.weight_g"] == ("vector", ENTRIES)


def test_a_weight_normed_convolution_takes_the_documented_step() -> None:
    """As one matrix [out, all others], not as one for each index of its first dimension."""
    torch.manual_seed(0)
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv1d(6, 8, 3, bias=False)))
    param = model.get_parameter("0.parametrizations.weight.original1")
    first = to_numpy(param).copy()
    optimizer = create_optimizer(model, SPECTRAL, 0.02)
    grads = []
    for number in range(1, 4):
        for each in model.parameters():
            each.grad = gradient(each, number)
        grads.append(to_numpy(param.grad).copy())
        optimizer.step()
    path = frame(first, grads, 0.02, direction="spectral", beta=0.95, min_scale=0.1)
    assert_near_oracle(param, path.last, torch.float32, 3, slack=3e-5)


@pytest.mark.parametrize(
    "target", ["*.weight", "conv.weight", "conv.parametrizations.weight.original1"]
)
def test_an_override_reaches_a_parametrized_weight_by_its_plain_name(target: str) -> None:
    model = Holds(parametrizations.weight_norm, nn.Conv1d(6, 8, 3))
    chosen = plan(model, SPECTRAL, 0.01, overrides={target: {"lr": 0.5}})
    (entry,) = [each for each in chosen.entries if each.name.endswith("original1")]
    assert entry.options["lr"] == 0.5
    assert {each.options["lr"] for each in chosen.entries if "bias" in each.name} == {0.01}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_an_override_reaches_the_old_kind_by_its_plain_name() -> None:
    model = Holds(nn.utils.weight_norm, nn.Conv1d(6, 8, 3))
    chosen = plan(model, "madam", 0.01, overrides={"conv.weight": {"skip": True}})
    assert {entry.name for entry in chosen.skipped} == {"conv.weight_g", "conv.weight_v"}


# --- what a module holds itself -----------------------------------------------------------


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(3, 4, 6))
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(3, 6))
        self.bias = nn.Parameter(torch.randn(3, 4))


class Own(nn.Module):
    """One parameter of each kind, as models of Transformers hold them."""

    def __init__(self) -> None:
        super().__init__()
        shapes = {name: shape for kind in OWN.values() for name, shape in kind.items()}
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape)))
        self.experts = Experts()


OWN: dict[str, dict[str, tuple[int, ...]]] = {
    "vector": {
        "A_log": (8, 4),
        "D": (2, 8),
        "input_gate_bias": (3, 8),
        "relative_position_bias_table": (9, 2),
        "attention_biases": (2, 9),
        "pos_bias_u": (2, 4),
        "layer_scale": (8, 1, 1),
        "scale": (3, 4),
        "cls_token": (1, 1, 8),
        "time_mix_key": (1, 1, 8),
    },
    "embedding": {
        "position_embeddings": (1, 7, 8),
        "pos_embed": (1, 3, 3, 8),
        "query_tokens": (1, 4, 8),
        "latents": (5, 8),
        "rel_pos_h": (5, 4),
        "register": (1, 4, 8),
    },
    "matrix": {
        "in_proj_weight": (24, 8),
        "prompts_visual_projection": (8, 6),
        "w1": (8, 6),
        "r_kernel": (8, 2, 4),
        "input_gate_weight": (2, 4, 4),
    },
}


def test_what_a_module_holds_itself_is_judged_by_name_and_shape() -> None:
    found = plans(Own())
    for role, names in OWN.items():
        assert {name: found[name][0] for name in names} == dict.fromkeys(names, role)
    assert {found[name][1] for name in OWN["vector"]} == {ENTRIES}
    assert {found[name][1] for name in OWN["embedding"]} == {"fromage, rms, by row"}
    assert {name: found[name][1].removeprefix("fromage, ") for name in OWN["matrix"]} == {
        "in_proj_weight": "spectral, 3 blocks",
        "prompts_visual_projection": "spectral",
        "w1": "spectral",
        "r_kernel": "spectral",
        "input_gate_weight": "spectral, 2 blocks",
    }
    assert found["experts.gate_up_proj"] == ("matrix", "fromage, spectral, 3 blocks")
    assert found["experts.gate_up_proj_bias"] == ("vector", ENTRIES)
    assert found["experts.bias"] == ("vector", ENTRIES)


def holding(**shapes: tuple[int, ...]) -> nn.Module:
    """A module that holds parameters of these names and shapes itself."""
    module = nn.Module()
    for name, shape in shapes.items():
        module.register_parameter(name, nn.Parameter(torch.randn(shape)))
    return module


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("b1", (4, 16)),
        ("b2", (4, 8)),
        ("B1", (4, 16)),
        ("b", (4, 16)),
        ("w2_b", (4, 8)),
        ("w1b", (4, 16)),
        ("b_up", (4, 16)),
        ("bias1", (4, 6)),
    ],
)
def test_biases_of_experts_are_known_by_the_weights_beside_them(
    name: str, shape: tuple[int, ...]
) -> None:
    module = holding(w1=(4, 8, 16), w2=(4, 16, 8), **{name: shape})
    assert plans(module)[name] == ("vector", ENTRIES)


@pytest.mark.parametrize(
    "shapes",
    [
        {"router": (4, 8)},
        {"w1_base": (4, 8)},  # its name starts with an expert's, and with a b after it
        {"b1": (4, 7)},  # as wide as no expert
        {"b1": (5, 8)},  # of other experts
        {"up_lora_b": (4, 8)},
        {"b": (4, 8), "a": (4, 8)},  # two factors of one matrix
        {"up_b": (4, 8), "up_a": (8, 4)},
        {"B": (4, 8)},
    ],
)
def test_what_is_called_nearly_so_is_a_matrix(shapes: dict[str, tuple[int, ...]]) -> None:
    module = holding(w1=(4, 8, 16), w2=(4, 16, 8), **shapes)
    assert {plans(module)[name][0] for name in shapes} == {"matrix"}


def test_without_experts_a_b_is_a_matrix() -> None:
    assert {role for role, _ in plans(holding(b1=(4, 16), b=(4, 8), w=(4, 8))).values()} == {
        "matrix"
    }


class Attends(nn.Module):
    def __init__(self, name: str, width: int) -> None:
        super().__init__()
        self.n_heads = 2
        self.add_module(name, nn.Embedding(9, width))


@pytest.mark.parametrize(
    ("name", "width", "role"),
    [
        ("relative_attention_bias", 2, "vector"),
        ("relative_position_bias", 12, "vector"),
        ("bias_values", 2, "vector"),
        ("rel_attn_embed", 2, "vector"),
        ("rel_pos_embed", 8, "embedding"),
        ("bias_embedding", 8, "embedding"),  # of what somebody is biased to
        ("embed", 2, "embedding"),
        ("relation", 8, "embedding"),
    ],
)
def test_embeddings_of_biases_by_relative_position_are_vectors(
    name: str, width: int, role: str
) -> None:
    assert plans(Attends(name, width))[f"{name}.weight"][0] == role


SMALL = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
IMAGE = {"image_size": 8, "patch_size": 4, "embed_dim": 8, "depths": [1], "num_heads": [2]}
VIT = {**SMALL, "image_size": 8, "patch_size": 4, "num_attention_heads": 2}
# Model, configuration, and for names that end so the role and what they follow.
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, tuple[str, str]]]] = {
    "gpt-oss": (
        "GptOssForCausalLM",
        {**SMALL, **HEADS, "num_local_experts": 3, "num_experts_per_tok": 1},
        {
            "experts.gate_up_proj": ("matrix", "fromage, spectral, 3 blocks"),
            "experts.gate_up_proj_bias": ("vector", ENTRIES),
            "experts.down_proj_bias": ("vector", ENTRIES),
            "router.weight": ("matrix", "fromage, spectral"),
        },
    ),
    "t5": (
        "T5ForConditionalGeneration",
        {"vocab_size": 32, "d_model": 16, "d_ff": 24, "d_kv": 8, "num_layers": 1, "num_heads": 2},
        {
            "relative_attention_bias.weight": ("vector", ENTRIES),
            "shared.weight": ("embedding", "fromage, rms, by row"),
        },
    ),
    "mpnet": (
        "MPNetForMaskedLM",
        {**SMALL, "num_attention_heads": 2},
        {
            "relative_attention_bias.weight": ("vector", ENTRIES),
            "position_embeddings.weight": ("embedding", "fromage, rms, by row"),
        },
    ),
    "wavlm": (
        "WavLMModel",
        {**SMALL, "num_attention_heads": 2, "conv_dim": [8], "conv_stride": [2]}
        | {"conv_kernel": [2], "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2},
        {"rel_attn_embed.weight": ("vector", ENTRIES)},
    ),
    "mamba": (
        "MambaForCausalLM",
        {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4},
        {"A_log": ("vector", ENTRIES), "mixer.D": ("vector", ENTRIES)},
    ),
    "recurrent-gemma": (
        "RecurrentGemmaForCausalLM",
        {**SMALL, "num_attention_heads": 2, "lru_width": 16, "block_types": ["recurrent"]},
        {
            "input_gate_bias": ("vector", ENTRIES),
            "recurrent_gate_bias": ("vector", ENTRIES),
            "recurrent_gate_weight": ("matrix", "fromage, spectral, 2 blocks"),
        },
    ),
    "swin": (
        "SwinForImageClassification",
        {**IMAGE, "window_size": 2},
        {"relative_position_bias_table": ("vector", ENTRIES)},
    ),
    "vit": (
        "ViTForImageClassification",
        VIT,
        {
            "cls_token": ("vector", ENTRIES),
            "position_embeddings": ("embedding", "fromage, rms, by row"),
        },
    ),
    "wav2vec2": (
        "Wav2Vec2ForCTC",
        {**SMALL, "num_attention_heads": 2, "conv_dim": [8], "conv_stride": [2]}
        | {"conv_kernel": [2], "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2},
        {
            "weight.original0": ("vector", ENTRIES),
            "weight.original1": ("conv", "fromage, spectral"),
        },
    ),
    "xlnet": (
        "XLNetLMHeadModel",
        {"vocab_size": 32, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 24},
        {
            "rel_attn.q": ("matrix", "fromage, spectral"),
            "rel_attn.o": ("matrix", "fromage, spectral"),
            "r_w_bias": ("vector", ENTRIES),
            "seg_embed": ("embedding", "fromage, rms, by row"),
        },
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_real_models(name: str) -> None:
    cls, config, expected = MODELS[name]
    model_class = getattr(transformers, cls)
    with torch.device("meta"):
        model = model_class(model_class.config_class(**config))
    found = plans(model)
    for end, what in expected.items():
        members = {each for weight, each in found.items() if weight.endswith(end)}
        assert members == {what}, end


# --- a vector of two dimensions -----------------------------------------------------------


def _biases() -> nn.Parameter:
    return nn.Parameter(gradient(torch.empty(3, 6), 1, 0.3))


@pytest.mark.parametrize("direction", ["spectral", "momentum", "adam"])
def test_a_bias_of_two_dimensions_takes_the_steps_of_a_vector(direction: str) -> None:
    """As the same numbers end to end, to the last bit, and with the same state."""
    bias, flat = _biases(), nn.Parameter(_biases().detach().flatten())
    matrices = [nn.Parameter(torch.ones(2, 2)) for _ in "ab"]
    ends = []
    for param, matrix in zip((bias, flat), matrices, strict=True):
        groups = [{"params": [param], "role": "vector"}, {"params": [matrix]}]
        optimizer = Fromage(groups, lr=0.1, direction=direction)
        for number in (1, 2, 3):
            param.grad = gradient(flat, number).view_as(param)
            optimizer.step()
        ends.append(param.detach().flatten())
        state = state_of(optimizer, param)
        assert set(state) == {"step", "skipped", "anchor_norm", "momentum", "second_moment"}
        assert state["anchor_norm"].shape == (1,)
    assert same_bits(*ends)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_biases_of_experts_rest_where_no_token_came(dtype: torch.dtype) -> None:
    model = Experts().to(dtype)
    optimizer = create_optimizer(model, SPECTRAL, 0.02)
    before = None
    for number in range(1, 5):
        for param in model.parameters():
            param.grad = gradient(param, number)
            if number > 1:
                param.grad[1] = 0.0
        optimizer.step()
        if number == 1:
            before = [param.detach().clone() for param in model.parameters()]
    assert before is not None
    for param, then in zip(model.parameters(), before, strict=True):
        assert same_bits(param[1], then[1])
        assert all(bool((param[expert] != then[expert]).any()) for expert in (0, 2))


def test_its_checkpoint_goes_on_and_one_that_knew_no_roles_does_as_it_did() -> None:
    ends = []
    for stop in (False, True):
        param = _biases()
        optimizer = Fromage([{"params": [param], "role": "vector"}], direction="adam")
        for number in (1, 2, 3, 4):
            if stop and number == 3:
                saved = optimizer.state_dict()
                optimizer = Fromage([{"params": [param], "role": "vector"}], direction="adam")
                optimizer.load_state_dict(saved)
            param.grad = gradient(param, number)
            optimizer.step()
        ends.append(param.detach().clone())
    assert same_bits(*ends)
    old, new = _biases(), _biases()
    before = Fromage([{"params": [old], "role": "matrix"}], direction="momentum")
    old.grad = gradient(old, 1)
    before.step()
    after = Fromage([{"params": [new], "role": "vector"}], direction="momentum")
    new.data.copy_(old.data)
    after.load_state_dict(before.state_dict())
    for param, optimizer in ((old, before), (new, after)):
        param.grad = gradient(param, 2)
        optimizer.step()
    assert same_bits(old, new)
