"""The real Trainer and a plain Accelerate loop over FSDP2, on gloo ranks.

Accelerate never shards on a CPU by itself. What it asks is the distributed type, so that is set;
everything after it is Accelerate's and Transformers' own: the tensors are DTensors in the end.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import accelerate
import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor

from hf_relopt import RelOptCallback, RelOptTrainer, UnsupportedSetup, create_optimizer
from hf_relopt.errors import ConfigError
from hf_relopt.hf.accelerate_faults import SHARDED_STATE, numbers
from hf_relopt.hf.checkpoints import find_fault
from hf_relopt.hf.learning_rate import look_as_rank_zero
from hf_relopt.hf.run_record import read_or_none
from hf_relopt.optim.create import default_lr
from tests.distributed.ranks import run_checks
from tests.hf.tiny import arguments, gpt2, rows

FOLDER = Path(sys.argv[1])
VERSIONS = numbers(accelerate.__version__), numbers(torch.__version__)
# Of FSDP2's checkpoints, those whose state Accelerate loads again.
STATES = ["FULL_STATE_DICT", *([] if SHARDED_STATE.is_in(*VERSIONS) else ["SHARDED_STATE_DICT"])]
STEPS = 6
# Of weights after these steps; spectral directions come from an iteration that rounds differently
# for other stacks of matrices.
CLOSE = {"fromage": 1e-5, "madam": 1e-5, "fromage_spectral": 1e-4}
# Rules that go entry by entry move the keys' biases by whole steps of rounding noise, and
# relative_update counts these; `same_training` in sharded.py trains them.
SKIPPED = {
    optim: {"optim_args": "*.c_attn.bias.skip=true"} for optim in ("madam", "fromage_spectral")
}


def shard_from_now_on() -> None:
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")


def stop_sharding() -> None:
    for name in ("ACCELERATE_USE_FSDP", "FSDP_VERSION", "FSDP_STATE_DICT_TYPE"):
        os.environ.pop(name, None)
    AcceleratorState._reset_state(reset_partial_state=True)


def trainer(
    name: str,
    optim: str,
    fsdp: bool = True,
    data: Any = None,
    state: str = "FULL_STATE_DICT",
    **given: Any,
) -> RelOptTrainer:
    stop_sharding()
    os.environ["FSDP_STATE_DICT_TYPE"] = state  # transformers 5.4 does not read it in fsdp_config
    how = {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": state}} if fsdp else {}
    args = arguments(FOLDER / name, optim=optim, max_steps=STEPS, **how, **given)
    assert args.device.type == "cpu"
    if fsdp:
        shard_from_now_on()
    made = RelOptTrainer(gpt2(), args, train_dataset=rows(64), eval_dataset=data)
    assert made.is_fsdp_enabled == fsdp
    return made


def whole(model: torch.nn.Module, sharded: bool = True) -> dict[str, torch.Tensor]:
    """The weights by name; without keys' biases, which follow rounding noise."""
    weights = {}
    for name, param in model.named_parameters():
        assert isinstance(param, DTensor) == sharded, name
        tensor = (param.full_tensor() if sharded else param).detach().clone()
        if name.endswith("c_attn.bias"):
            query, _, value = tensor.chunk(3)
            tensor = torch.cat([query, value])
        weights[name] = tensor
    return weights


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def trainer_shards_and_equals_ddp() -> None:
    for optim, close in CLOSE.items():
        ends, logs = [], []
        for fsdp in (False, True):
            said = SKIPPED.get(optim, {})
            if fsdp and optim == "fromage":
                said = {"optim_args": "step_in_backward=true"}
            made = trainer(f"{optim}-{fsdp}", optim, fsdp, logging_steps=1, **said)
            made.train()
            ends.append(whole(made.model, sharded=fsdp))
            logs.append([entry for entry in made.state.log_history if "loss" in entry])
        for name, tensor in ends[0].items():
            torch.testing.assert_close(ends[1][name], tensor, rtol=close, atol=close, msg=name)
        for ddp, fsdp2 in zip(*logs, strict=True):
            for figure in ("loss", "learning_rate", "relative_update", "at_bound"):
                close_to = 1e-4 * abs(ddp[figure])
                assert abs(ddp[figure] - fsdp2[figure]) <= close_to, (figure, ddp, fsdp2)


def trainer_resumes_with_the_same_bits() -> None:
    pairs = [(optim, state) for optim in ("fromage", "fromage_spectral") for state in STATES]
    for optim, state in [*pairs, ("madam", STATES[-1])]:
        name = f"{optim}-{state}"
        unbroken = trainer(f"{name}-unbroken", optim)
        unbroken.train()
        trainer(name, optim, state=state, save_steps=3, save_strategy="steps").train()
        again = trainer(name, optim, state=state, save_strategy="no")
        folder = FOLDER / name / "checkpoint-3"
        again.train(resume_from_checkpoint=str(folder))
        assert again.state.global_step == STEPS
        same_bits(whole(unbroken.model), whole(again.model))
        dist.barrier()
        if state == "SHARDED_STATE_DICT" and dist.get_rank() == 0:
            damaged_shards_are_noticed(folder)


def damaged_shards_are_noticed(folder: Path) -> None:
    assert find_fault(folder) is None
    for part, name in (("optimizer_0", "__1_0.distcp"), ("pytorch_model_fsdp_0", "__0_0.distcp")):
        file = folder / part / name
        held = file.read_bytes()
        file.write_bytes(held[: len(held) // 2])
        assert find_fault(folder) == f"{part}: {name} is truncated"
        file.unlink()
        assert find_fault(folder) == f"{part}: {name} is missing"
        file.write_bytes(held)
    metadata = folder / "optimizer_0" / ".metadata"
    held = metadata.read_bytes()
    metadata.unlink()
    assert find_fault(folder) == "optimizer_0: .metadata, which is written last, is missing"
    metadata.write_bytes(held)


def another_optimizers_shards_are_refused_or_discarded() -> None:
    for state in STATES:
        name = f"adamw-{state}"
        trainer(name, "adamw_torch", state=state, save_steps=3, save_strategy="steps").train()
        folder = str(FOLDER / name / "checkpoint-3")
        after = trainer(f"after-{name}", "fromage", state=state)
        try:
            after.train(folder)
        except ConfigError as error:
            assert "exp_avg" in str(error) and "Fromage" in str(error), error
        else:
            raise AssertionError("another optimizer's state was taken")
        after = trainer(f"after-{name}", "fromage", state=state)
        after.train(folder, discard_optimizer_state=True)
        assert after.state.global_step == STEPS


def another_directions_shards_are_refused() -> None:
    """Fromage keeps no momentum to go on with, and a momentum is of no use to it."""
    for state in STATES:
        for before, then in (("fromage", "fromage_spectral"), ("fromage_spectral", "fromage")):
            name = f"{before}-{state}"  # left by trainer_resumes_with_the_same_bits
            after = trainer(f"{then}-after-{name}", then, state=state)
            try:
                after.train(str(FOLDER / name / "checkpoint-3"))
            except ConfigError as error:
                assert "momentum" in str(error), error
            else:
                raise AssertionError(f"{then} went on from {name}")


def accelerate_loop_swaps_the_tensors() -> None:
    """The optimizer is made from whole tensors; prepare puts DTensors in their place."""
    for optim, close in CLOSE.items():
        stop_sharding()
        PartialState(cpu=True)
        shard_from_now_on()
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
        accelerator = Accelerator(fsdp_plugin=plugin, cpu=True)
        assert accelerator.distributed_type == DistributedType.FSDP
        model, alone = gpt2(), gpt2()
        inside = optim == "madam"
        made = create_optimizer(model, optim, step_in_backward=inside)
        model, optimizer = accelerator.prepare(model, made)
        reference = create_optimizer(alone, optim)
        ids = torch.stack([row["input_ids"] for row in rows(8)])
        mine = ids[dist.get_rank() :: dist.get_world_size()]
        for _ in range(STEPS):
            for net, step, batch in ((model, optimizer, mine), (alone, reference, ids)):
                step.zero_grad()
                net(input_ids=batch, labels=batch).loss.backward()
                gone = [param.grad is None for param in net.parameters()]
                assert all(gone) if inside and net is model else not any(gone)
                step.step()
        expected = whole(alone, sharded=False)
        for name, tensor in whole(model).items():
            torch.testing.assert_close(tensor, expected[name], rtol=close, atol=close, msg=name)


def what_this_accelerate_does_wrong_is_refused() -> None:
    """Older ones leave a sharded state out; others make what they must of bfloat16 weights."""
    name = "sharded"
    saving = {"save_steps": 3, "save_strategy": "steps"}
    trainer(name, "fromage", state="SHARDED_STATE_DICT", **saving).train()
    again = trainer(name, "fromage", state="SHARDED_STATE_DICT")
    try:
        again.train(str(FOLDER / name / "checkpoint-3"))
    except UnsupportedSetup as error:
        assert SHARDED_STATE.is_in(*VERSIONS)
        assert f"accelerate {accelerate.__version__}" in str(error) and ">=1.13" in str(error)
    else:
        assert not SHARDED_STATE.is_in(*VERSIONS)
        assert {int(s["step"]) for s in again.optimizer.optimizer.state.values()} == {STEPS}
    low = trainer("low", "fromage", bf16=True)
    low.model.to(torch.bfloat16)
    low.train()
    assert {param.dtype for param in low.model.parameters()} == {torch.float32}


def ddp_and_fsdp2_go_on_from_each_other() -> None:
    """Trainer alone would begin with a fresh state: it looks for a file of its own kind."""
    saving = {"save_strategy": "steps", "save_steps": 3, "optim_args": "lr=0.02"}
    for optim, close in CLOSE.items():
        unbroken = trainer(f"across-{optim}", optim, fsdp=False, **saving)
        unbroken.train()
        trainer(f"across-{optim}-fsdp2", optim, **saving).train()
        expected = whole(unbroken.model, sharded=False)
        for before, fsdp in ((f"across-{optim}", True), (f"across-{optim}-fsdp2", False)):
            after = trainer(f"{before}-on", optim, fsdp=fsdp, optim_args="lr=0.02")
            after.train(str(FOLDER / before / "checkpoint-3"))
            inner = after.optimizer.optimizer
            assert {int(state["step"]) for state in inner.state.values()} == {STEPS}
            for name, tensor in whole(after.model, sharded=fsdp).items():
                torch.testing.assert_close(tensor, expected[name], rtol=close, atol=close, msg=name)


def all_ranks_see_what_the_one_sees_that_has_weights() -> None:
    """cpu_ram_efficient_loading: on other ranks than the first the model is on the meta device."""
    stop_sharding()
    args = arguments(FOLDER / "meta", optim="fromage")
    assert args.device.type == "cpu"
    shard_from_now_on()
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "true"
    model = gpt2()
    model.config._name_or_path = "somewhere"
    if dist.get_rank() > 0:
        model.to("meta")
        assert default_lr(model, "fromage")[0] == 0.001, "it is judged by where it comes from"
    assert look_as_rank_zero(model).situation == "untrained", "its norm weights are"
    del os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"]


def evaluate_before_train_is_refused() -> None:
    """Accelerate then takes the model for prepared, and leaves DDP out without a word."""
    made = trainer("evaluated", "fromage", fsdp=False)
    before = {name: param.clone() for name, param in made.model.named_parameters()}
    made.evaluate(rows(8))
    if VERSIONS[0] < (1, 14):
        made.train()
        assert isinstance(made.model_wrapped, torch.nn.parallel.DistributedDataParallel)
        return
    try:
        made.train()
    except UnsupportedSetup as error:
        assert "eval_on_start" in str(error), error
    else:
        raise AssertionError("two processes trained apart")
    same_bits(before, dict(made.model.named_parameters()))
    trainer("eval-on-start", "fromage", fsdp=False, eval_on_start=True, data=rows(8)).train()


def recipe_trains_and_goes_on() -> None:
    """A sample needs every rank, and a tied weight is saved under each of its names."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))
    import pretrain_clm
    import training_session
    from run_folder import RunFolder

    class Sharding(RelOptTrainer):
        def __init__(self, *given: Any, **named: Any) -> None:
            shard_from_now_on()
            os.environ["FSDP_STATE_DICT_TYPE"] = "FULL_STATE_DICT"  # as in recipes/accelerate/
            super().__init__(*given, **named)
            assert self.is_fsdp_enabled

    training_session.make_trainer.__defaults__ = (Sharding,)
    stop_sharding()
    PartialState(cpu=True)
    leave, dist.destroy_process_group = dist.destroy_process_group, lambda: None
    text, folder = FOLDER / "text.txt", FOLDER / "recipe"
    if dist.get_rank() == 0:
        text.write_text("".join(f"one cat sees {row % 7} birds\n" for row in range(400)))
    dist.barrier()
    words = "--vocab_size 270 --block_size 16 --config_overrides n_layer=1,n_embd=16,n_head=2"
    words += " --max_steps 4 --save_steps 2 --eval_steps 4 --max_eval_samples 4 --use_cpu"
    command = [*words.split(), "--train_file", str(text), "--output_dir", str(folder)]
    stop_sharding()
    pretrain_clm.main(command)
    assert RunFolder(folder).record["sample"]
    unbroken = (folder / "model.safetensors").read_bytes()
    dist.barrier()
    if dist.get_rank() == 0:  # as if killed after step 2
        record = RunFolder(folder).record
        for entry in ("finished", "after", "steps", "seconds", "sample", "hints"):
            del record[entry]
        (folder / "run.json").write_text(json.dumps(record))
        (folder / "checkpoint-4" / "trainer_state.json").unlink()
        (folder / "model.safetensors").unlink()
    dist.barrier()
    stop_sharding()
    pretrain_clm.main(command)
    dist.barrier()
    assert (folder / "model.safetensors").read_bytes() == unbroken
    dist.destroy_process_group = leave


def the_record_and_the_card_are_of_the_full_weights() -> None:
    made = trainer("card", "fromage")
    made._record._base = {"base_model": str(FOLDER), "base_is_local": True}
    made.train()
    dist.barrier()
    record = read_or_none(FOLDER / "card")
    assert record is not None and record["finished"]
    assert record["launch"] == {"mode": "FSDP2", "processes": 2, "backend": "gloo"}
    total = sum(param.numel() for param in gpt2().parameters())
    assert record["model"]["parameters"] == total
    assert sum(group["parameters"] for group in record["optimizer"]["groups"]) == total
    if dist.get_rank() == 0:  # the others do not wait for its card
        text = (FOLDER / "card" / "README.md").read_text()
        assert "| launch mode | FSDP2, 2 processes, gloo |" in text
        assert "is not measured: the weights are sharded. Run `hf-relopt card` on" in text


def telemetry_is_of_the_full_model_and_written_once() -> None:
    """By the first rank, which speaks; the metrics are in every rank's log."""
    initial = FOLDER / "initial"
    if os.environ["RANK"] == "0":  # the others wait before they read it
        gpt2().save_pretrained(initial)
    found = {}
    for fsdp in (False, True):
        for kind in ({"snapshots": "memory", "snapshot_dtype": "float32"}, {"initial": initial}):
            name = f"telemetry-{fsdp}-{'-'.join(kind)}"
            made = trainer(name, "fromage", fsdp, logging_steps=3)
            RelOptCallback(**kind).attach(made)
            made.train()
            logs = [entry for entry in made.state.log_history if "loss" in entry]
            assert all("relative_update/matrix" in entry for entry in logs)
            assert fsdp <= ("drt_since_start" in logs[0])
            dist.barrier()
            text = (FOLDER / name / "telemetry.jsonl").read_text(encoding="utf-8")
            lines = [json.loads(line) for line in text.splitlines()]
            kinds = [(line["kind"], line["step"]) for line in lines if line["kind"] != "warning"]
            assert kinds == [("run", 0), ("step", 3), ("step", 6)], kinds
            assert [layer["name"] for layer in lines[0]["layers"]] == [
                name for name, _ in gpt2().named_parameters()
            ]
            weights = whole(made.model, sharded=fsdp)
            norms = dict(zip(weights, lines[-1]["norm"], strict=True))
            for name, tensor in weights.items():
                if not name.endswith("c_attn.bias"):
                    assert abs(norms[name] - float(tensor.norm())) <= 1e-5 * norms[name], name
            found[fsdp, next(iter(kind))] = lines[-1]["metrics"]
    same = found[False, "snapshots"]
    for metrics in found.values():
        for name in ("relative_update", "step_drt", "drt_since_start", "at_bound/embedding"):
            assert abs(metrics[name] - same[name]) <= 1e-4 * abs(same[name]), (name, found)


CHECKS = (
    trainer_shards_and_equals_ddp,
    the_record_and_the_card_are_of_the_full_weights,
    telemetry_is_of_the_full_model_and_written_once,
    trainer_resumes_with_the_same_bits,
    another_optimizers_shards_are_refused_or_discarded,
    another_directions_shards_are_refused,
    accelerate_loop_swaps_the_tensors,
    what_this_accelerate_does_wrong_is_refused,
    ddp_and_fsdp2_go_on_from_each_other,
    all_ranks_see_what_the_one_sees_that_has_weights,
    evaluate_before_train_is_refused,
    recipe_trains_and_goes_on,
)


def main() -> None:
    warnings.filterwarnings("ignore")  # Trainer's own, about DDP and single devices
    torch.set_num_threads(1)
    run_checks(CHECKS, sys.argv[2:])


if __name__ == "__main__":
    main()
