"""Real models of one layer: which weights are cut into matrices, how, and that they train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from hf_relopt import create_optimizer, plan
from tests.hf.tiny import gpt2

SIZE = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
EXPERTS = {"moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 4}
GPT2 = {"vocab_size": 50, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
BIG_CODE = {**GPT2, "attn_implementation": "eager"}
OLDER = {"vocab_size": 50, "hidden_size": 16, "n_layer": 1, "n_head": 2}
BERT = {**SIZE, "num_attention_heads": 2, "max_position_embeddings": 16}
CODEGEN = {**GPT2, "n_head": 4, "rotary_dim": 4, "tie_word_embeddings": False}
# model, configuration, and what the cut weights follow; all others are one matrix
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "gpt2": (
        "GPT2LMHeadModel",
        {**GPT2, **ENDS, "add_cross_attention": True},
        {"attn.c_attn": "3 blocks", "crossattention.c_attn": "2 blocks"},
    ),
    "llama": ("LlamaForCausalLM", {**SIZE, **HEADS, **ENDS}, {}),
    "phi3": (
        "Phi3ForCausalLM",
        {**SIZE, **HEADS, **ENDS},
        {"self_attn.qkv_proj": "blocks of 16, 8, 8", "mlp.gate_up_proj": "2 blocks"},
    ),
    "qwen3-moe": (
        "Qwen3MoeForCausalLM",
        {**SIZE, **HEADS, **ENDS, **EXPERTS, "decoder_sparse_step": 1},
        {"experts.gate_up_proj": "4 blocks", "experts.down_proj": "4 blocks"},
    ),
    "bert": ("BertForSequenceClassification", BERT, {}),
    "gpt-neox": (
        "GPTNeoXForCausalLM",
        {**SIZE, **ENDS, "num_attention_heads": 2},
        {},  # query_key_value has its heads interleaved
    ),
    "bloom": ("BloomForCausalLM", {**OLDER, **ENDS}, {}),
    "codegen": ("CodeGenForCausalLM", {**CODEGEN, **ENDS}, {}),
    "gpt-bigcode": (
        "GPTBigCodeForCausalLM",
        {**BIG_CODE, **ENDS},
        {"attn.c_attn": "blocks of 16, 8, 8"},
    ),
    "gpt-bigcode, own keys": (
        "GPTBigCodeForCausalLM",
        {**BIG_CODE, **ENDS, "multi_query": False},
        {},
    ),
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    cls, config, _ = MODELS[name]
    model_class = getattr(transformers, cls)
    model: nn.Module = model_class(model_class.config_class(**config)).eval()
    return model


def follows(model: nn.Module) -> dict[str, str]:
    """What each weight follows, without the name of the rule."""
    chosen = plan(model, "fromage_spectral")
    return {entry.name: chosen._follows(entry).partition(", ")[2] for entry in chosen.entries}


def batch(model: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 40, (4, 8), generator=generator)
    if "Classification" in type(model).__name__:
        return {"input_ids": ids, "labels": torch.arange(4) % 2}
    more = {}
    if getattr(model.config, "add_cross_attention", False):
        more["encoder_hidden_states"] = torch.randn(4, 3, 16, generator=generator)
    return {"input_ids": ids, "labels": ids, **more}


@pytest.mark.parametrize("name", MODELS)
def test_which_weights_are_cut_and_how(name: str) -> None:
    model = build(name)
    cuts = MODELS[name][2]
    for weight, words in follows(model).items():
        param = model.get_parameter(weight)
        short = weight.removesuffix(".weight")
        cut = next((how for end, how in cuts.items() if short.endswith(f".{end}")), None)
        if sum(size > 1 for size in param.shape) < 2:
            assert words.startswith("entry by entry"), weight
        elif any(part in weight for part in ("embed", "wte", "wpe", "lm_head")):
            assert words == "rms, by row", weight
        elif "classifier" in weight:
            assert words == "momentum, by row", weight
        else:
            assert words == ("spectral" if cut is None else f"spectral, {cut}"), weight
    found = [words for words in follows(model).values() if "block" in words]
    assert len(found) == len(cuts)


@pytest.mark.parametrize("name", MODELS)
def test_three_steps_lower_the_loss(name: str) -> None:
    model = build(name)
    model.loss_type = "ForCausalLM"
    optimizer = create_optimizer(model, "fromage_spectral")
    given, losses = batch(model), []
    for _ in range(4):
        loss = model(**given).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    assert all(bool(torch.isfinite(param).all()) for param in model.parameters())


@pytest.mark.parametrize(
    ("prefix", "wrap"), [("module", nn.DataParallel), ("_orig_mod", torch.compile)]
)
def test_a_wrapper_does_not_hide_how_many_heads_share_keys(
    prefix: str, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    bare, wrapped = follows(build("phi3")), follows(wrap(build("phi3")))
    assert wrapped == {f"{prefix}.{name}": words for name, words in bare.items()}


def test_half_as_many_keys_are_not_two_equal_parts() -> None:
    """Without a configuration queries, keys and values cannot be told from two matrices."""
    attention = build("phi3").model.layers[0].self_attn
    del attention.config
    assert follows(attention)["qkv_proj.weight"] == "spectral"


@pytest.mark.parametrize(
    ("shape", "words"), [((24, 8), "spectral, 3 blocks"), ((24, 9), "spectral")]
)
def test_torch_s_own_attention(shape: tuple[int, int], words: str) -> None:
    attention = nn.MultiheadAttention(8, 2)
    attention.in_proj_weight = nn.Parameter(torch.randn(shape))
    assert follows(attention)["in_proj_weight"] == words


def test_an_override_of_the_scale_takes_the_cut_back() -> None:
    overrides = {"*.c_attn.weight": {"scale": "tensor"}}
    chosen = plan(gpt2(), "fromage_spectral", overrides=overrides)
    assert "blocks" not in str(chosen)
    own = {"*.c_attn.weight": {"split_sizes": 6}}
    chosen = plan(gpt2(), "fromage_spectral", overrides=own)
    assert "fromage, spectral, 6 blocks" in str(chosen)


# PEFT itself still asks for the old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")
def test_lora_adapters_are_matrices_and_b_starts_at_zero() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
    model = peft.get_peft_model(build("llama"), config)
    words = follows(model)
    assert len(words) == 4
    for name, param in model.named_parameters():
        if param.requires_grad:
            zero = ", from zero by min_scale" if ".lora_B" in name else ""
            assert words[name] == f"spectral{zero}"
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer = create_optimizer(model, "fromage_spectral")
    assert {group["lr"] for group in optimizer.param_groups} == {0.03}
    given, losses = batch(model.get_base_model()), []
    for _ in range(4):
        loss = model(**given).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    named = dict(model.named_parameters())
    assert all(torch.equal(named[name], was) for name, was in frozen.items())
    assert all(bool(named[name].count_nonzero()) for name in words)
