"""DistanceBudget in a Trainer: limits, holds, checkpoints and resumes."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_model
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from hf_relopt import ConfigError, DistanceBudget, FormatError, RelOptTrainer, network_distance
from hf_relopt.hf.checkpoints import find_fault
from tests.distance.nets import by_hand
from tests.hf.conftest import Said
from tests.hf.tiny import arguments, forked_python, gpt2, rows, same, weights

RHO = 0.01


def trainer(
    folder: Path, *callbacks: Any, optim: str = "adamw_torch", cls: type = Trainer, **given: Any
) -> Any:
    given = {"learning_rate": 0.01, "max_steps": 8, **given}
    if optim == "adamw_torch":
        given = {"weight_decay": 0.0, **given}
    args = arguments(folder, optim=optim, **given)
    return cls(gpt2(), args, train_dataset=rows(64), callbacks=list(callbacks))


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def drt_of(folder: Path) -> float:
    return network_distance(gpt2(), AutoModelForCausalLM.from_pretrained(folder)).drt


class Seen(TrainerCallback):
    """What another callback sees at the end of each step."""

    def __init__(self) -> None:
        self.far: list[float] = []

    def on_step_end(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
        self.far.append(max(by_hand(gpt2(), model).values()))


@pytest.mark.parametrize("optim", ["adamw_torch", "fromage", "fromage_spectral", "madam"])
@pytest.mark.parametrize("first", [True, False])
def test_any_optimizer_is_held_whatever_the_order_of_callbacks(tmp_path, optim, first):
    seen, budget = Seen(), DistanceBudget(hold=RHO)
    callbacks = [seen, budget] if first else [budget, seen]
    cls = Trainer if optim == "adamw_torch" else RelOptTrainer
    trainer(tmp_path, *callbacks, optim=optim, cls=cls, gradient_accumulation_steps=2).train()
    assert len(seen.far) == 8
    assert all(far <= RHO * (1 + 1e-5) for far in seen.far) and seen.far[-1] > RHO * (1 - 1e-4)


def test_training_stops_at_a_look_and_saves_the_weights_of_the_one_before(tmp_path, said: Said):
    budget = DistanceBudget(drt=0.4, every=2, copy="exact")
    made = trainer(tmp_path, budget, max_steps=40, learning_rate=2e-4)
    made.train()
    step = budget.stopped_at
    assert step is not None and 2 < step == made.state.global_step < 40
    assert checkpoints(tmp_path) == [f"checkpoint-{step}"]
    assert find_fault(tmp_path / f"checkpoint-{step}") is None
    assert drt_of(tmp_path / f"checkpoint-{step}") <= 0.4 < budget.last.drt  # type: ignore[union-attr]
    # The model, too: whoever saves it now saves what is within.
    assert network_distance(gpt2(), made.model).drt <= 0.4
    # The same run, ended at the look before.
    other = trainer(tmp_path / "other", max_steps=40, learning_rate=2e-4)

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == step - 2

    other.add_callback(Stop())
    other.train()
    assert same(weights(made.model), weights(other.model))
    [line] = said.about("training stops at step")
    assert f"checkpoint-{step}" in line and "above 0.4" in line
    assert said.levels[said.lines.index(line)] == "WARNING"


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_every_checkpoint_is_within_and_one_is_enough(tmp_path, strategy):
    """Looks are 100 steps apart, but nothing is saved that was not looked at."""
    save_model(gpt2(), tmp_path / "start.safetensors")
    budget = DistanceBudget(drt=0.3, initial=tmp_path / "start.safetensors")
    data = {"per_device_train_batch_size": 16} if strategy == "epoch" else {"save_steps": 3}
    given = {"save_strategy": strategy, "save_total_limit": 1, "max_steps": 60, **data}
    made = trainer(tmp_path / "run", budget, **given)
    made.train()
    assert budget.stopped_at is not None and budget.stopped_at < 60
    [only] = checkpoints(tmp_path / "run")
    assert only == f"checkpoint-{budget.stopped_at}" and drt_of(tmp_path / "run" / only) <= 0.3


def test_the_last_step_is_looked_at(tmp_path):
    budget = DistanceBudget(layer=0.05, copy="exact")
    made = trainer(tmp_path, budget, max_steps=30)
    made.train()
    assert budget.stopped_at == 30
    assert (
        max(each.relative_update for each in network_distance(gpt2(), made.model).matrices) <= 0.05
    )


def test_a_bound_stops_before_the_limit(tmp_path, said: Said):
    budget = DistanceBudget(drt=0.3)
    made = trainer(tmp_path, budget, optim="fromage", cls=RelOptTrainer, max_steps=50)
    made.train()
    step = budget.stopped_at
    assert step is not None and step < 50 and checkpoints(tmp_path) == [f"checkpoint-{step}"]
    assert network_distance(gpt2(), made.model).drt <= budget.last.drt <= 0.3  # type: ignore[union-attr]
    assert drt_of(tmp_path / f"checkpoint-{step}") <= 0.3
    assert said.about("within the limit")


@pytest.mark.parametrize("options", [{}, {"copy": "bfloat16"}, {"copy": "disk"}], ids=str)
@pytest.mark.parametrize("optim", ["adamw_torch", "fromage"])
def test_a_resumed_hold_is_the_same_bit_for_bit(tmp_path, options, optim):
    given = {"optim": optim, "save_strategy": "steps", "save_steps": 4}
    whole = trainer(tmp_path / "whole", DistanceBudget(hold=RHO, **options), **given)
    whole.train()
    again = trainer(tmp_path / "whole", DistanceBudget(hold=RHO, **options), **given)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert same(weights(whole.model), weights(again.model))
    assert max(by_hand(gpt2(), again.model).values()) <= RHO * 1.004 + 2.0**-8 * bool(options)


def test_a_resumed_budget_that_trainer_restores_is_the_same(tmp_path):
    given = {"save_strategy": "steps", "save_steps": 4}
    whole = trainer(tmp_path, DistanceBudget(hold=RHO), **given)
    whole.train()
    restore = {"restore_callback_states_from_checkpoint": True}
    again = trainer(tmp_path, DistanceBudget(hold=RHO), **given, **restore)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert same(weights(whole.model), weights(again.model))


def test_a_resumed_bound_stops_where_the_whole_run_does(tmp_path):
    given = {"optim": "fromage", "save_strategy": "steps", "save_steps": 2, "max_steps": 50}
    whole = DistanceBudget(drt=0.4)
    trainer(tmp_path, whole, **given).train()
    again = DistanceBudget(drt=0.4)
    trainer(tmp_path, again, **given).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.stopped_at == whole.stopped_at is not None
    assert again.last == whole.last


def test_a_run_that_had_no_budget_is_resumed_from_its_initial_checkpoint_alone(tmp_path):
    save_model(gpt2(), tmp_path / "start.safetensors")
    given = {"save_strategy": "steps", "save_steps": 4, "optim": "fromage"}
    trainer(tmp_path / "run", **given).train()
    folder = str(tmp_path / "run" / "checkpoint-4")
    with pytest.raises(ConfigError, match=r"written without them.*initial="):
        trainer(tmp_path / "run", DistanceBudget(hold=RHO), **given).train(folder)
    with pytest.raises(ConfigError, match=r"had no bound.*initial="):
        trainer(tmp_path / "run", DistanceBudget(drt=1.0), **given).train(folder)
    budget = DistanceBudget(hold=RHO, initial=tmp_path / "start.safetensors")
    made = trainer(tmp_path / "run", budget, **given)
    made.train(folder)
    assert max(by_hand(gpt2(), made.model).values()) <= RHO * (1 + 1e-5)


def test_the_weights_of_another_run_are_not_taken_for_this_one_s(tmp_path):
    given = {"save_strategy": "steps", "save_steps": 4}
    made = trainer(tmp_path, DistanceBudget(hold=RHO), **given)
    made.train()
    kept = tmp_path / "distance_budget"
    [file] = kept.iterdir()
    other = trainer(tmp_path / "other", DistanceBudget(hold=RHO), **given)
    with torch.no_grad():
        other.model.transformer.wte.weight.add_(1)
    other.train()
    file.write_bytes((tmp_path / "other" / "distance_budget" / file.name).read_bytes())
    folder = str(tmp_path / "checkpoint-4")
    with pytest.raises(FormatError, match=r"of another run.*initial="):
        trainer(tmp_path, DistanceBudget(hold=RHO), **given).train(folder)
    file.unlink()
    with pytest.raises(FormatError, match=r"are missing.*initial="):
        trainer(tmp_path, DistanceBudget(hold=RHO), **given).train(folder)


def test_a_hold_and_a_limit_are_two_budgets_that_find_their_own_state(tmp_path, caplog):
    caplog.set_level(logging.ERROR)  # Trainer says that there are two
    given = {"save_strategy": "steps", "save_steps": 4}

    def two() -> list[DistanceBudget]:
        return [DistanceBudget(drt=9.0, copy="disk"), DistanceBudget(hold=RHO)]

    whole = trainer(tmp_path, *two(), **given)
    whole.train()
    again = trainer(tmp_path, *two(), **given)
    again.train(str(tmp_path / "checkpoint-4"))
    assert same(weights(whole.model), weights(again.model))


def test_what_would_break_the_promise_is_refused_before_training(tmp_path):
    with pytest.raises(ConfigError, match=r"adamw_torch|AdamW.*initial="):
        trainer(tmp_path, DistanceBudget(drt=0.1)).train()
    best = {"save_strategy": "best", "eval_strategy": "steps", "metric_for_best_model": "loss"}
    args = arguments(tmp_path, **best, eval_steps=2)
    made = Trainer(
        gpt2(), args, train_dataset=rows(), eval_dataset=rows(8),
        callbacks=[DistanceBudget(drt=0.1, copy="exact")],
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"save_strategy is 'best'.*'steps'"):
        made.train()


def test_deepspeed_is_refused(tmp_path, monkeypatch):
    from hf_relopt import UnsupportedSetup

    made = trainer(tmp_path, DistanceBudget(hold=RHO))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    args: TrainingArguments = made.args
    with pytest.raises(UnsupportedSetup, match=r"DeepSpeed.*FSDP2"):
        DistanceBudget(hold=RHO).on_train_begin(args, made.state, made.control, model=made.model)


def test_free_weights_are_named_once(tmp_path, said: Said):
    budget = DistanceBudget(hold=RHO, free=["transformer.wte.*"])
    made = trainer(tmp_path, budget)
    made.train()
    assert by_hand(gpt2(), made.model)["transformer.wte.weight"] > 2 * RHO
    [line] = said.about("leaves alone")
    assert "transformer.wte.weight (free)" in line


def test_budgets_can_be_copied_before_they_begin():
    assert copy.deepcopy(DistanceBudget(hold=RHO)).limits == DistanceBudget(hold=RHO).limits


KILLED = """
import os, signal, sys
from pathlib import Path
from transformers import TrainerCallback
from hf_relopt import DistanceBudget
from tests.hf.test_budget import RHO, trainer

class Die(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 6:
            os.kill(os.getpid(), signal.SIGKILL)

given = {"save_strategy": "steps", "save_steps": 4}
trainer(Path(sys.argv[1]), DistanceBudget(hold=RHO), Die(), **given).train()
"""


def test_a_run_that_is_killed_resumes_with_the_same_bits(tmp_path):
    given = {"save_strategy": "steps", "save_steps": 4}
    whole = trainer(tmp_path / "whole", DistanceBudget(hold=RHO), **given)
    whole.train()
    assert forked_python(KILLED, str(tmp_path / "killed")).returncode == -9
    assert checkpoints(tmp_path / "killed") == ["checkpoint-4"]
    again = trainer(tmp_path / "killed", DistanceBudget(hold=RHO), cls=RelOptTrainer, **given)
    again.train(resume_from_checkpoint=True)
    assert same(weights(whole.model), weights(again.model))


def adapters(folder: Path, budget: DistanceBudget, **given: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(2)
    config = LoraConfig(r=2, target_modules=["c_attn", "c_fc"], modules_to_save=["ln_f"])
    made = trainer(folder, **{"learning_rate": 0.05, **given})
    torch.manual_seed(3)
    model = get_peft_model(gpt2(), config)
    return Trainer(model, made.args, train_dataset=rows(64), callbacks=[budget])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*fan_in_fan_out")
def test_adapters_are_held_by_their_change_and_resume_with_the_same_bits(tmp_path):
    given = {"save_strategy": "steps", "save_steps": 4}
    budget = DistanceBudget(hold=RHO)
    made = adapters(tmp_path, budget, **given)
    made.train()
    distance = network_distance(None, made.model)
    moved = [layer.relative_update for layer in distance.layers if layer.update_norm > 0]
    assert moved and max(moved) <= RHO * (1 + 1e-5) and max(moved) > RHO * (1 - 1e-4)
    assert any("ln_f" in layer.name and layer.update_norm > 0 for layer in distance.layers)
    again = adapters(tmp_path, DistanceBudget(hold=RHO), **given)
    again.train(str(tmp_path / "checkpoint-4"))
    assert same(weights(made.model), weights(again.model))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*fan_in_fan_out")
def test_adapters_stop_at_a_limit_without_a_copy_of_the_base(tmp_path):
    budget = DistanceBudget(layer=0.1, every=1)
    made = adapters(tmp_path, budget, max_steps=40, learning_rate=1e-3)
    made.train()
    assert budget.stopped_at is not None and 1 < budget.stopped_at < 40
    found = network_distance(None, made.model).matrices
    assert 0 < max(layer.relative_update for layer in found) <= 0.1
    for options, words in (
        ({"drt": 0.1, "copy": "exact"}, "Leave copy out"),
        ({"hold": 0.1, "initial": str(tmp_path)}, "Leave initial out"),
    ):
        with pytest.raises(ConfigError, match=words):
            adapters(tmp_path, DistanceBudget(**options)).train()
