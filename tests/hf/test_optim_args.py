"""Every malformed --optim_args ends in one clear ConfigError as soon as the arguments are built."""

from __future__ import annotations

import pytest
import torch
from transformers import HfArgumentParser, Trainer, TrainingArguments

from hf_relopt import ConfigError
from hf_relopt.hf.callbacks import unwrapped
from hf_relopt.hf.optim_args import OptimArgs, parse
from tests.hf.tiny import arguments, gpt2, passed, python, rows

BAD = [
    # (optim, optim_args, what the message has to name)
    ("fromage", "p_bound", ["'p_bound'", "name=value", "p_bound=1.0"]),
    ("fromage", "p_bound=", ["'p_bound='", "name=value"]),
    ("fromage", "=1.0", ["'=1.0'", "name=value"]),
    ("fromage", "p_bound=abc", ["p_bound", "'abc'", "number"]),
    ("fromage", "p_bound=-1", ["p_bound", "-1", "> 0"]),
    ("fromage", "p_bound=nan", ["p_bound", "nan"]),
    ("fromage", "p_bound=inf", ["p_bound", "inf"]),
    ("fromage", "a=b=c", ["'a=b=c'", "name=value"]),
    ("fromage", "p_bound=1.0,", ["name=value"]),
    ("fromage", "p_bound=1,p_bound=2", ["p_bound", "twice"]),
    ("fromage", "pbound=1", ["'pbound'", "p_bound"]),
    ("fromage", "p_scale=3", ["p_scale", "belongs to madam"]),
    ("madam", "p_bound=1.0", ["p_bound", "belongs to fromage"]),
    ("madam", "beta=1.0", ["beta", "1.0", "< 1"]),
    ("madam", "beta=1", ["beta", "< 1"]),
    ("fromage", "lr=-0.1", ["lr", "-0.1", "0 <= lr < 1"]),
    ("fromage", "lr=nan", ["lr", "nan"]),
    ("fromage", "lr=1", ["lr", "0 <= lr < 1"]),
    ("fromage", "backend=fused", ["backend", "'fused'", "'foreach'"]),
    ("fromage", "rounding=up", ["rounding", "'up'", "'stochastic'"]),
    ("fromage", "seed=1.5", ["seed", "'1.5'", "integer"]),
    ("fromage", "maximize=maybe", ["maximize", "'maybe'", "True or False"]),
    ("fromage", "vector.rule=adam", ["vector", "'adam'", "adamw"]),
    ("fromage", "vector.betas=0.9;0.99", ["betas", "belongs to adamw"]),
    ("fromage", "vector.rule=adamw,vector.betas=0.9", ["betas", "two numbers"]),
    ("fromage", "vector.rule=adamw,vector.p_bound=2", ["p_bound", "belongs to fromage"]),
    ("fromage", "vector.skip=perhaps", ["skip", "'perhaps'", "True or False"]),
    ("fromage", "vector.lr=2", ["lr", "2.0", "0 <= lr < 1"]),
    # Fromage as a frame: what the options say together.
    ("fromage", "direction=spectral,scale=row", ["scale is 'row'", "'spectral'", "'rms'"]),
    ("fromage_spectral", "scale=row", ["scale is 'row'", "'spectral'"]),
    ("fromage_spectral", "direction=spectral", ["embeddings and heads", "'matrix'"]),
    ("fromage", "momentum=.9", ["momentum is 0.9", "'gradient'", "does not read it"]),
    ("fromage", "momentum_dtype=bfloat16", ["momentum_dtype", "does not read it"]),
    ("fromage_spectral", "direction=gradient,momentum=.9", ["momentum is 0.9", "'gradient'"]),
    ("fromage_spectral", "iterations=2", ["iterations is 2", "'sinkhorn'"]),
    ("fromage_sinkhorn", "iterations=0", ["iterations", "0", "1 to 100"]),
    ("fromage_spectral", "momentum=1", ["momentum", "1", "< 1"]),
    ("fromage_spectral", "momentum_dtype=float16", ["momentum_dtype", "'bfloat16'"]),
    ("fromage_spectral", "nesterov=maybe", ["nesterov", "'maybe'", "True or False"]),
    ("fromage_spectral", "bound=sphere,p_bound=2", ["p_bound is 2.0", "'sphere'"]),
    ("fromage_spectral", "direction=spektral", ["direction", "'spektral'", "'spectral'"]),
    ("fromage_spectral", "matrix.split_sizes=3;x", ["split_sizes", "'3;x'"]),
    ("fromage_momentum", "split_sizes=3", ["split_sizes is 3", "scale='block'"]),
    ("fromage_momentum", "p_scale=3", ["p_scale", "belongs to madam"]),
    ("muonh", "betas=0.9;0.95", ["betas", "adamw", "embedding.betas"]),
    ("muonh", "vector.p_scale=3", ["p_scale", "belongs to madam"]),
    ("muonh", "vector.betas=0.9;2", ["betas", "two numbers"]),
    ("adamh", "bound=sphere,p_bound=2", ["p_bound is 2.0", "'sphere'"]),
    ("adamh", "nesterov=true", ["nesterov is True", "'adam'"]),
    ("fromage", ".lr=0.1", [".lr"]),
    ("fromage", "vector.=0.1", ["vector."]),
]


@pytest.mark.parametrize(("optim", "text", "named"), BAD)
def test_bad_text_is_one_clear_error_when_the_arguments_are_built(optim, text, named, tmp_path):
    with pytest.raises(ConfigError) as error:
        arguments(tmp_path, optim=optim, optim_args=text)
    message = str(error.value)
    assert isinstance(error.value, ValueError)
    assert "\n" not in message
    for words in named:
        assert words in message, message


def test_bad_text_from_a_command_line(tmp_path):
    line = ["--output_dir", str(tmp_path), "--use_cpu", "--optim", "fromage"]
    with pytest.raises(ConfigError, match="p_bound"):
        HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(
            [*line, "--optim_args", "p_bound=abc"]
        )


def test_text_set_after_construction_is_checked_by_the_trainer(tmp_path):
    args = arguments(tmp_path, optim="fromage")
    args.optim_args = "p_bound=-2"
    with pytest.raises(ConfigError, match="p_bound is -2"):
        Trainer(gpt2(), args, train_dataset=rows()).train()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, OptimArgs()),
        ("", OptimArgs()),
        ("lr=5e-5", OptimArgs(lr=5e-5)),
        (" p_bound = 1.0 , seed=3", OptimArgs(options={"p_bound": 1.0, "seed": 3})),
        ("p_bound=none,rounding=None", OptimArgs(options={"p_bound": None, "rounding": None})),
        ("min_scale=0", OptimArgs(options={"min_scale": 0.0})),
        ("maximize=true", OptimArgs(options={"maximize": True})),
        ("backend=loop", OptimArgs(options={"backend": "loop"})),
        ("vector.lr=1e-3", OptimArgs(overrides={"vector": {"lr": 1e-3}})),
        ("*.bias.skip=true", OptimArgs(overrides={"*.bias": {"skip": True}})),
        (
            "vector.betas=0.8;0.95,vector.rule=adamw,vector.eps=1e-6",
            OptimArgs(overrides={"vector": {"betas": (0.8, 0.95), "rule": "adamw", "eps": 1e-6}}),
        ),
        (
            "transformer.h.0.attn.*.p_bound=2,p_bound=3",
            OptimArgs(
                options={"p_bound": 3.0}, overrides={"transformer.h.0.attn.*": {"p_bound": 2.0}}
            ),
        ),
        (
            "head.rule=madam,head.p_scale=5",
            OptimArgs(overrides={"head": {"rule": "madam", "p_scale": 5.0}}),
        ),
    ],
)
def test_what_text_means(text, expected):
    assert parse("fromage", text) == expected


def test_options_and_overrides_reach_the_groups(tmp_path):
    text = "p_bound=2.0,vector.rule=adamw,vector.lr=1e-3,transformer.wpe.*.lr=0.003"
    args = arguments(tmp_path, optim="fromage", optim_args=text, learning_rate=0.02)
    optimizer = Trainer(gpt2(), args, train_dataset=rows()).create_optimizer()
    groups = {tuple(g["param_names"]): g for g in optimizer.param_groups}
    vectors = [g for g in optimizer.param_groups if g["role"] == "vector"]
    assert {(g["rule"], g["lr"]) for g in vectors} == {("adamw", 1e-3)}
    assert groups[("transformer.wpe.weight",)]["lr"] == 0.003
    matrices = [g for g in optimizer.param_groups if g["role"] == "matrix"]
    assert {(g["rule"], g["lr"], g["p_bound"]) for g in matrices} == {("fromage", 0.02, 2.0)}


def test_options_of_a_preset_win_and_overrides_leave_it(tmp_path):
    text = "p_bound=2,vector.rule=adamw,vector.lr=1e-3,momentum=0.9,momentum_dtype=bfloat16"
    args = arguments(tmp_path, optim="fromage_spectral", optim_args=text)
    job = Trainer(gpt2(), args, train_dataset=rows())
    job.train()
    optimizer = unwrapped(job.optimizer)
    groups = {(group["role"], group["scale"]): group for group in optimizer.param_groups[:]
              if group["rule"] == "fromage"}  # fmt: skip
    directions = {key: group["direction"] for key, group in groups.items()}
    assert directions == {
        ("embedding", "row"): "rms",
        ("matrix", "block"): "spectral",
        ("matrix", "tensor"): "spectral",
    }
    for group in groups.values():
        reads = group["role"] == "matrix"
        assert (group["p_bound"], group["momentum"]) == (2.0, 0.9 if reads else None)
        for param in group["params"]:
            momentum = optimizer.state[param].get("momentum")
            assert (momentum is not None) == reads
            assert momentum is None or momentum.dtype == torch.bfloat16
    (vectors,) = [group for group in optimizer.param_groups if group["role"] == "vector"]
    assert (vectors["rule"], vectors["initial_lr"]) == ("adamw", 1e-3)


def test_a_scale_that_an_override_takes_back_by_name(tmp_path):
    text = "direction=momentum,transformer.wte.weight.scale=tensor,transformer.wpe.*.rule=madam"
    args = arguments(tmp_path, optim="fromage_spectral", optim_args=text)
    optimizer = Trainer(gpt2(), args, train_dataset=rows()).create_optimizer()
    found = {
        n: (g["rule"], g.get("scale")) for g in optimizer.param_groups for n in g["param_names"]
    }
    assert found["transformer.wte.weight"] == ("fromage", "tensor")
    assert found["transformer.wpe.weight"] == ("madam", None)


def test_a_contradiction_with_a_role_is_an_error_before_training(tmp_path):
    args = arguments(tmp_path, optim="fromage_spectral", optim_args="embedding.direction=spectral")
    with pytest.raises(ConfigError, match="scale is 'row' with direction 'spectral'"):
        Trainer(gpt2(), args, train_dataset=rows()).train()


def test_an_override_that_matches_nothing_is_an_error_that_says_what_there_is(tmp_path):
    args = arguments(tmp_path, optim="fromage", optim_args="conv.lr=0.1")
    with pytest.raises(ConfigError) as error:
        Trainer(gpt2(), args, train_dataset=rows()).create_optimizer()
    for words in ("'conv'", "embedding, matrix, vector", "transformer.wte.weight"):
        assert words in str(error.value)


def test_text_is_read_without_transformers():
    code = """
        import sys
        from hf_relopt.hf.optim_args import parse
        parse("fromage_spectral", "momentum=0.9,vector.rule=adamw")
        print(sorted({"transformers", "accelerate", "datasets"} & set(sys.modules)))
    """
    assert passed(python(code)) == "[]\n"
