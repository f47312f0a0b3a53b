"""Launch modes that cannot be exact are refused before training; the situations here are real."""

from __future__ import annotations

import importlib.util
import json
import os
import socket

import pytest
import torch
from torch import nn

from hf_relopt import UnsupportedSetup, compress
from hf_relopt.hf import guards
from tests.hf.tiny import arguments, gpt2, passed, python

# A child's first lines: one rank of one, and a way to say what was refused.
CHILD = """
import os, sys
folder = sys.argv[1]
from hf_relopt import Fromage, UnsupportedSetup, create_optimizer
from hf_relopt.hf import guards

def refused(call, *words):
    try:
        call()
    except UnsupportedSetup as error:
        assert "\\n" not in str(error)
        for word in (*words, "DDP"):  # the mode that works
            assert word in str(error), (word, str(error))
        return
    raise AssertionError(f"not refused: {words}")
"""


def child(code: str, folder, **environment: str) -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
    return passed(python(CHILD + code, str(folder), **rank, **address, **environment))


@pytest.mark.parametrize("optim", ["fromage", "madam"])
def test_fsdp1_argument_is_refused_when_the_arguments_are_built(optim, tmp_path):
    given = {"fsdp": True, "fsdp_config": {"version": 1}}
    with pytest.raises(UnsupportedSetup, match="FSDP1") as error:
        arguments(tmp_path, optim=optim, **given)
    assert "FSDP2" in str(error.value)
    arguments(tmp_path, optim="adamw_torch", **given)


@pytest.mark.parametrize("optim", ["fromage", "madam"])
def test_fsdp2_argument_passes(optim, tmp_path):
    guards.check_arguments(arguments(tmp_path, optim=optim, fsdp=True, fsdp_config={"version": 2}))


@pytest.mark.parametrize("word", ["true", "True"])
def test_fsdp_from_accelerate_launch(word, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", word)
    monkeypatch.setenv("FSDP_VERSION", "2")
    arguments(tmp_path, optim="fromage")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(UnsupportedSetup, match="FSDP1"):
        arguments(tmp_path, optim="fromage")


def test_fsdp_over_codes_is_refused_as_soon_as_there_is_a_model(tmp_path):
    fsdp = arguments(tmp_path, optim="madam", fsdp=True, fsdp_config={"version": 2})
    guards.check_model_arguments(fsdp, gpt2())
    model = compress(gpt2(), "lns8")
    guards.check_model_arguments(arguments(tmp_path, optim="integer_madam"), model)
    with pytest.raises(UnsupportedSetup, match="cannot shard weights in codes"):
        guards.check_model_arguments(fsdp, model)


def test_an_ordinary_model_passes(tmp_path):
    guards.check_arguments(arguments(tmp_path))
    guards.check_launch(gpt2())
    guards.check_launch(nn.DataParallel(gpt2()))


@pytest.mark.dist
@pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="needs the extra deepspeed")
def test_deepspeed(tmp_path):
    """ZeRO and DeepSpeed's own optimizer are refused, by Trainer and in a plain loop; 0 trains."""
    (tmp_path / "zero3.json").write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    code = """
    import torch
    from accelerate.state import AcceleratorState
    from transformers import Trainer
    from tests.hf.tiny import arguments, gpt2, rows

    def config(stage, **more):
        batch = {"train_micro_batch_size_per_gpu": 4}
        return {**batch, "zero_optimization": {"stage": stage}, **more}

    def build(config, **given):
        return arguments(folder, optim="fromage", deepspeed=config, **given)

    for stage in (1, 2, 3):
        refused(lambda: build(config(stage)), f"ZeRO stage {stage}")
    refused(lambda: build(folder + "/zero3.json"), "ZeRO stage 3")
    own = {"type": "AdamW", "params": {"lr": 1e-3}}
    refused(lambda: build(config(0, optimizer=own)), "AdamW")
    build(config(0))

    # accelerate launch --use_deepspeed speaks through the environment.
    os.environ.update(ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_DEEPSPEED_ZERO_STAGE="2")
    refused(lambda: arguments(folder, optim="madam"), "ZeRO stage 2")
    os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = folder + "/zero3.json"
    def by_file():
        args = arguments(folder, optim="madam")
        Trainer(gpt2(), args, train_dataset=rows()).create_optimizer()

    refused(by_file, "ZeRO stage 3")
    AcceleratorState._reset_state(reset_partial_state=True)
    for name in ("USE_DEEPSPEED", "DEEPSPEED_ZERO_STAGE", "DEEPSPEED_CONFIG_FILE"):
        del os.environ["ACCELERATE_" + name]

    import deepspeed

    def loop(stage):
        model = gpt2()
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=create_optimizer(model, "fromage"),
            config=config(stage, zero_allow_untested_optimizer=True),
        )
        ids = torch.stack([row["input_ids"] for row in rows(4)])
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step()

    refused(lambda: loop(1), "ZeRO", "transformer.wte.weight")
    refused(lambda: loop(3), "ZeRO")
    loop(0)

    trainer = Trainer(gpt2(), build(config(0), max_steps=2), train_dataset=rows())
    trainer.train()
    assert trainer.state.global_step == 2
    torch.distributed.destroy_process_group()
    """
    child(code.replace("\n    ", "\n"), tmp_path, DS_ACCELERATOR="cpu")


@pytest.mark.parametrize(
    ("version", "model", "resumes", "refused"),
    [
        (
            "1.13.0",
            gpt2().to(torch.bfloat16),
            False,
            ["1.13.0", "dtype=torch.float32", "rounding="],
        ),
        ("1.14.0", gpt2().to(torch.bfloat16), False, ["1.14.0", "tied", "accelerate>=1.15"]),
        ("1.12.0", gpt2(), True, ["1.12.0", "SHARDED_STATE_DICT", "accelerate>=1.13"]),
        ("1.13.0", gpt2(), True, None),
        ("1.12.0", gpt2().to(torch.bfloat16), False, None),
        ("1.14.0", nn.Linear(2, 2).to(torch.float16), True, None),
        ("1.15.0", gpt2().to(torch.bfloat16), True, None),
        ("1.13.0", gpt2().to(torch.bfloat16).requires_grad_(False), True, None),
        ("1.11.0", None, False, None),
    ],
)
def test_what_a_release_of_accelerate_does_wrong_under_fsdp2(
    version, model, resumes, refused, monkeypatch
):
    """The faults themselves were seen with the releases; tests/distributed runs the installed."""
    import accelerate
    from accelerate.state import AcceleratorState
    from accelerate.utils import FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT")
    monkeypatch.setattr(accelerate, "__version__", version)
    monkeypatch.setattr(torch, "__version__", "2.13.0")
    guards.check_accelerate(model, resumes=resumes)  # nothing is sharded
    monkeypatch.setitem(AcceleratorState._shared_state, "fsdp_plugin", plugin)
    monkeypatch.setitem(AcceleratorState._shared_state, "_mixed_precision", "bf16")
    if refused is None:
        guards.check_accelerate(model, resumes=resumes)
        return
    with pytest.raises(UnsupportedSetup) as error:
        guards.check_accelerate(model, resumes=resumes)
    for words in refused:
        assert words in str(error.value)
    if "rounding=" in str(error.value):
        guards.check_accelerate(model, resumes=resumes, rounds=True)


def test_sharded_weights_are_refused_by_what_they_are():
    """FSDP1's mark on a tensor; the wrapper is in tests/distributed."""
    model = nn.Linear(2, 2)
    model.weight._fsdp_flattened = True
    with pytest.raises(UnsupportedSetup, match="FSDP1"):
        guards.check_model(model)


def test_the_environment_is_as_it_was():
    assert os.environ.get("ACCELERATE_USE_FSDP") is None
    assert torch.distributed.is_initialized() is False
