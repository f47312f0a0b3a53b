"""What is known of each optimizer name, and what names and rules that are not ours get."""

from __future__ import annotations

import pytest

from hf_relopt.hf.optim_args import parse
from hf_relopt.options.tables import OPTIONS
from hf_relopt.plans.entries import (
    OPTIMIZERS,
    entry_of_rule,
    follows_spectral,
    in_place_of_decay,
    preset_of,
    rule_of_name,
    rules_of_name,
)
from hf_relopt.plans.roles import ROLES
from hf_relopt.rules.rule import RULES
from hf_relopt.shipped import OPTIMIZER_NAMES

PRESETS = [
    "fromage_spectral",
    "fromage_momentum",
    "fromage_sinkhorn",
    "fromage_factored",
    "muonh",
    "adamh",
]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_entry_leads_to_its_class_and_rule_and_says_what_is_true(name):
    entry = OPTIMIZERS[name]
    assert entry.load().rule == entry.rule
    assert entry.rule in RULES and entry.rule in OPTIONS
    assert "(https://arxiv.org/abs/" in entry.words
    assert entry.from_scratch.low <= entry.from_scratch_lr <= entry.from_scratch.high
    for text in filter(None, (entry.bound, entry.decay)):
        assert parse(name, text).options or parse(name, text).overrides
        assert text in in_place_of_decay(name) or text == entry.decay


def test_the_names_of_the_light_list_are_the_entries():
    assert tuple(OPTIMIZERS) == OPTIMIZER_NAMES


def test_a_preset_has_the_rule_that_it_gives():
    presets = {name: preset_of(name) for name in OPTIMIZERS}
    assert [name for name, preset in presets.items() if preset] == PRESETS
    for name in PRESETS:
        assert rule_of_name(name) == presets[name].rule == "fromage"
        assert OPTIMIZERS[name].words == OPTIMIZERS["fromage"].words
        assert set(rules_of_name(name)) <= RULES.keys() and rules_of_name(name)[0] == "fromage"
        for role in ROLES:
            given = {
                **presets[name].options_of(role, {}, 0.02),
                "rule": presets[name].rule_of(role),
            }
            assert given.keys() <= {*OPTIONS[given["rule"]], "rule"}


def test_names_and_rules_that_are_not_ours_are_left_alone():
    assert (rule_of_name("adamw"), preset_of("adamw"), entry_of_rule("adamw")) == (
        "adamw",
        None,
        None,
    )
    assert entry_of_rule("fromage") is OPTIMIZERS["fromage"]
    assert entry_of_rule("madam") is OPTIMIZERS["madam"]


def test_what_is_given_wins_over_the_direction_of_a_preset():
    assert follows_spectral("fromage_spectral", {})
    assert not follows_spectral("fromage_spectral", {"direction": "momentum"})
    assert not follows_spectral("fromage_momentum", {})
    assert follows_spectral("fromage", {"direction": "spectral"})
    assert follows_spectral("muonh", {}) and not follows_spectral("adamh", {})
