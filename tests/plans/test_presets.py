"""Presets: what each role gets of one, and what a user's own words do to that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from hf_relopt import ConfigError, create_optimizer, plan
from hf_relopt.plans.entries import OPTIMIZERS
from hf_relopt.plans.plan import followed_lr

PRESET = "fromage_spectral"
# Those that give all weights one rule; test_hyperball.py has the others.
PRESETS = [
    name for name, e in OPTIMIZERS.items() if e.preset is not None and len(e.preset.rules) == 1
]
# What tables of tokens have under each preset: lr_factor, p_bound.
OF_TOKENS = {
    "fromage_spectral": (2.5, 1.0),
    "fromage_momentum": (2.5, 1.0),
    "fromage_sinkhorn": (None, 1.0),
    "fromage_factored": (None, 1.0),
}

# What belongs to the preset's own direction, and goes with it.
REPLACED = {"lr_factor": None, "p_bound": None}


def embedding(optim: str = PRESET) -> dict[str, object]:
    factor, bound = OF_TOKENS[optim]
    own = {"direction": "rms", "scale": "row", "momentum": None}
    return {**own, "lr_factor": factor, "p_bound": bound}


def gpt2(tied: bool = True) -> nn.Module:
    size = {"vocab_size": 8, "n_positions": 4, "n_embd": 4, "n_layer": 1, "n_head": 1}
    tokens = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**size, **tokens, tie_word_embeddings=tied))


def classifier() -> nn.Module:
    config = gpt2().config
    config.pad_token_id = 0
    return GPT2ForSequenceClassification(config)


def of_role(role: str, optim: str = PRESET, **given: object) -> dict[str, object]:
    model = gpt2(tied=False)
    optimizer = create_optimizer(model, optim, 0.02, **given)
    (group,) = [group for group in optimizer.param_groups if group["role"] == role]
    return group


@pytest.mark.parametrize("optim", PRESETS)
def test_embeddings_and_untied_heads_follow_their_rows_usual_gradients(optim: str) -> None:
    for role in ("embedding", "head"):
        group, expected = of_role(role, optim), embedding(optim)
        if role == "head":
            expected["p_bound"] = None  # it has to grow
        assert {name: group[name] for name in expected} == expected
        assert group["lr"] == 0.02


@pytest.mark.parametrize("optim", PRESETS)
def test_the_plan_shows_the_rate_that_is_followed(optim: str) -> None:
    lr = OPTIMIZERS[optim].from_scratch_lr
    followed = f"{lr * (OF_TOKENS[optim][0] or 1.0):g}"
    rates = {line.split()[0]: line.split("by row")[-1].split()[0]
             for line in str(plan(gpt2(tied=False), optim, lr)).splitlines()
             if "by row" in line}  # fmt: skip
    assert rates == {"embedding": followed, "head": followed}


@pytest.mark.parametrize(
    ("lr", "followed"),
    [(0.0, 0.0), (1e-4, 1e-3), (1e-3, 1e-2), (3e-3, 1e-2), (0.01, 0.01), (0.02, 0.02)],
)
@pytest.mark.parametrize("optim", PRESETS)
def test_the_head_of_a_task_goes_ahead_in_fine_tuning(
    optim: str, lr: float, followed: float
) -> None:
    """Ten times the rate, up to that of untrained weights; a vocabulary's head has been trained."""
    of_tokens = lr * (OF_TOKENS[optim][0] or 1.0)
    for model, expected in ((classifier(), followed), (gpt2(tied=False), of_tokens)):
        for given in (lr, torch.tensor(lr)):
            groups = create_optimizer(model, optim, given).param_groups
            (head,) = [group for group in groups if group["role"] == "head"]
            assert head["lr"] is given or head["lr"] == lr
            assert followed_lr(head) == pytest.approx(expected)
    (own,) = [
        group
        for group in create_optimizer(
            classifier(), optim, lr, overrides={"head": {"lr": 2e-3}}
        ).param_groups
        if group["role"] == "head"
    ]
    assert (own["lr"], own["lr_factor"]) == (2e-3, None)


def test_a_head_with_one_output_steps_entry_by_entry_at_the_rate() -> None:
    """Its step is a part of ``min_scale`` and not of its entries, however small these are."""
    config = gpt2().config
    config.num_labels, config.pad_token_id = 1, 0
    groups = create_optimizer(GPT2ForSequenceClassification(config), PRESET, 1e-3).param_groups
    assert {followed_lr(group) for group in groups if group["role"] == "head"} == {1e-3}


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_wrapped_it_is_the_head_of_a_task_and_nothing_else_is(wrap: Callable[..., Any]) -> None:
    chosen = plan(wrap(classifier()), PRESET, 1e-3)
    ahead = [entry.name for entry in chosen.entries if entry.options.get("lr_factor") == 10.0]
    assert [name.split(".", 1)[1] for name in ahead] == ["score.weight"]


def test_a_vocabulary_s_head_and_a_decoder_stay_with_the_rest() -> None:
    tiny = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    masked = BertForMaskedLM(BertConfig(vocab_size=8, num_hidden_layers=1, **tiny))
    decoder = {"decoder_hidden_size": 8, "decoder_intermediate_size": 8}
    small = {"image_size": 4, "patch_size": 2, "num_hidden_layers": 1, **tiny, **decoder}
    heads = {"decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    for model in (gpt2(tied=False), masked, ViTMAEForPreTraining(ViTMAEConfig(**small, **heads))):
        entries = plan(model, PRESET, 1e-3).entries
        assert "head" in {entry.role for entry in entries}
        assert {entry.options.get("lr_factor") for entry in entries} <= {None, OF_TOKENS[PRESET][0]}


def test_the_paper_s_rule_has_one_rate() -> None:
    for optim in ("fromage", "madam"):
        groups = create_optimizer(classifier(), optim, 1e-3).param_groups
        assert {followed_lr(group) for group in groups} == {1e-3}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"p_bound": 3.0}, {"p_bound": 3.0}),
        ({"lr_factor": 1.0}, {"lr_factor": 1.0}),
        ({"momentum": 0.8}, {"momentum": None}),  # which matrices read
        ({"beta": 0.9}, {"beta": 0.9}),
        ({"direction": "gradient"}, {"direction": "gradient", **REPLACED}),
        ({"direction": "momentum"}, {"direction": "momentum", **REPLACED}),
        (
            {"overrides": {"embedding": {"direction": "adam"}}},
            {"direction": "adam", **REPLACED},
        ),
        (
            {"overrides": {"embedding": {"direction": "adam", "momentum": 0.8}}},
            {"direction": "adam", "momentum": 0.8, **REPLACED},
        ),
        ({"bound": "sphere"}, {"bound": "sphere", "p_bound": None}),
        ({"overrides": {"embedding": {"bound": "sphere"}}}, {"bound": "sphere", "p_bound": None}),
        ({"overrides": {"embedding": {"p_bound": 2.0}}}, {"p_bound": 2.0}),
        ({"overrides": {"embedding": {"lr": 0.003}}}, {"lr": 0.003, "lr_factor": None}),
        (
            {"overrides": {"embedding": {"lr": 0.003, "lr_factor": 0.25}}},
            {"lr": 0.003, "lr_factor": 0.25},
        ),
    ],
)
def test_a_user_s_words_win_and_take_what_they_replace_away(
    given: dict[str, object], expected: dict[str, object]
) -> None:
    group = of_role("embedding", **given)
    whole = {**embedding(), "lr": 0.02, "bound": None, **expected}
    assert {name: group[name] for name in whole} == whole


@pytest.mark.parametrize(("optim", "given", "words"), [
    ("fromage_sinkhorn", {"momentum": 0.9}, ["momentum is 0.9", "'rms', 'sinkhorn'", "Leave it"]),
    ("fromage_sinkhorn", {"momentum_dtype": "bfloat16"}, ["momentum_dtype", "'spectral'"]),
    ("fromage_spectral", {"iterations": 3}, ["iterations is 3", "'sinkhorn'"]),
    ("fromage_momentum", {"direction": "gradient", "nesterov": True}, ["nesterov is True"]),
], ids=str)  # fmt: skip
def test_what_no_weight_reads_is_refused(
    optim: str, given: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        create_optimizer(gpt2(), optim, 0.02, **given)
    assert all(word in str(caught.value) for word in words), caught.value


def test_what_only_the_head_of_a_task_reads_is_taken() -> None:
    groups = create_optimizer(classifier(), "fromage_sinkhorn", 1e-3, momentum=0.8).param_groups
    assert {group["role"] for group in groups if group["momentum"] == 0.8} == {"head"}
