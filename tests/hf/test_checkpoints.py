"""A run that was killed while saving resumes from the last complete checkpoint."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from transformers import Trainer

from hf_relopt import RelOptTrainer
from hf_relopt.errors import ConfigError, FormatError
from hf_relopt.hf.checkpoints import find_fault, last_complete_checkpoint, require_complete
from tests.hf.damage import (
    DEEP,
    a_folder,
    a_pipe,
    changed,
    cut,
    empty,
    header,
    header_cut,
    holding,
    linked,
    saved,
    without,
    zeroed,
)
from tests.hf.tiny import arguments, gpt2, rows, same, weights

DAMAGES = [
    ("trainer_state.json", Path.unlink, "trainer_state.json"),
    ("trainer_state.json", cut, "trainer_state.json"),
    ("trainer_state.json", empty, "trainer_state.json"),
    ("model.safetensors", Path.unlink, "weights"),
    ("model.safetensors", cut, "model.safetensors"),
    ("model.safetensors", header_cut, "model.safetensors"),
    ("model.safetensors", empty, "model.safetensors"),
    ("optimizer.pt", cut, "optimizer.pt"),
    ("optimizer.pt", empty, "optimizer.pt"),
    ("scheduler.pt", cut, "scheduler.pt"),
    ("rng_state.pth", cut, "rng_state.pth"),
    ("optimizer.pt", Path.unlink, "optimizer"),
    ("scheduler.pt", Path.unlink, "scheduler.pt"),
    *[("trainer_state.json", holding(text), "trainer_state.json") for text in (
        "null", "[]", "{}", "7", '"text"', DEEP, "9" * 10_000, "\x00\xff", '{"global_step": null}',
        '{"global_step": true, "max_steps": 4, "log_history": [], "epoch": 1}',
        '{"global_step": -1, "max_steps": 4, "log_history": [], "epoch": 1}',
        '{"global_step": 4, "max_steps": 4, "log_history": [3], "epoch": 1}',
    )],
    ("trainer_state.json", without("global_step"), "global_step"),
    ("trainer_state.json", without("log_history"), "log_history"),
    *[("model.safetensors", header(*content), "model.safetensors") for content in (
        (b"{}", 2**62), (b"{}", 2**64 - 1), (b"{}", 1000), (b"[]",), (b"null",), (b"{",), (b"",),
        (b'{"w": {}}',), (b'{"w": {"dtype": "F32", "shape": [2]}}',), (DEEP.encode(),),
        (b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": "x"}}',),
        (b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 80]}}',),
        (b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [9, 1]}}',),
    )],
    *[(name, damage, name) for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth")
      for damage in (zeroed, holding(b"text"), holding(pickle.dumps({"state": {}})))],
]  # fmt: skip


def test_the_newest_whole_one_is_taken(run, said):
    assert last_complete_checkpoint(run) == str(run / "checkpoint-4")
    assert find_fault(run / "checkpoint-4") is None
    require_complete(run / "checkpoint-2")
    assert not said.lines


@pytest.mark.parametrize(("name", "damage", "named"), DAMAGES)
def test_a_damaged_one_is_passed_over_and_named(name, damage, named, run, said):
    damage(run / "checkpoint-4" / name)
    kept = sorted(path.name for path in (run / "checkpoint-4").iterdir())
    assert last_complete_checkpoint(run) == str(run / "checkpoint-2")
    (line,) = said.about("checkpoint-4")
    assert named in line
    with pytest.raises(FormatError, match="checkpoint-4") as error:
        require_complete(run / "checkpoint-4")
    assert named in str(error.value)
    # Nothing is deleted: it may be all that somebody has.
    assert sorted(path.name for path in (run / "checkpoint-4").iterdir()) == kept


@pytest.mark.parametrize("fields", [
    {"base_lrs": ["x"]}, {"base_lrs": [0.1] * 9}, {"base_lrs": [float("nan")]}, {"base_lrs": 5},
    {"last_epoch": "x"}, {"last_epoch": None}, {"step": 5}, {"lr_lambdas": 5}, {"lr_lambdas": []},
    "nothing of the kind",
])  # fmt: skip
def test_a_schedule_of_another_run_is_refused(fields, run):
    path = run / "checkpoint-4" / "scheduler.pt"
    (changed(**fields) if isinstance(fields, dict) else saved({"x": 1}))(path)
    job = RelOptTrainer(gpt2(), arguments(run, optim="fromage"), train_dataset=rows())
    with pytest.raises(FormatError, match=r"checkpoint-4 .*scheduler.pt"):
        job.train(str(run / "checkpoint-4"))


@pytest.mark.parametrize("damage", [linked("nowhere"), linked("."), a_folder, a_pipe])
@pytest.mark.parametrize("name", [
    "optimizer.pt", "scheduler.pt", "trainer_state.json", "model.safetensors", "config.json",
    "rng_state.pth", "optimizer.bin", "pytorch_model.bin", "model.safetensors.index.json",
])  # fmt: skip
def test_anything_in_place_of_a_file_is_a_fault(name, damage, run):
    damage(run / "checkpoint-4" / name)
    assert f"{name} is a" in (fault := find_fault(run / "checkpoint-4")) or "something" in fault
    assert last_complete_checkpoint(run) == str(run / "checkpoint-2")


def test_a_link_to_itself_is_a_fault(run):
    linked("optimizer.pt")(run / "checkpoint-4" / "optimizer.pt")
    assert (
        find_fault(run / "checkpoint-4") == "optimizer.pt is a link to nothing in place of a file"
    )


def test_links_to_files_are_files(run, tmp_path):
    for name in ("optimizer.pt", "model.safetensors", "trainer_state.json"):
        (run / "checkpoint-4" / name).rename(tmp_path / name)
        linked(str(tmp_path / name))(run / "checkpoint-4" / name)
    assert find_fault(run / "checkpoint-4") is None


@pytest.mark.parametrize("weights_alone", [True, False])
@pytest.mark.parametrize("name", ["optimizer_0", "pytorch_model_fsdp_0", "global_step4"])
@pytest.mark.parametrize("damage", [holding(b"x"), linked("nowhere")])
def test_anything_in_place_of_a_folder_is_a_fault(name, damage, weights_alone, run):
    (run / "checkpoint-4" / "optimizer.pt").unlink()
    damage(run / "checkpoint-4" / name)
    assert name in find_fault(run / "checkpoint-4", weights_alone=weights_alone)


@pytest.mark.parametrize("name", [
    "optimizer_1", "optimizer_plots", "global_step4", "global_steps", "my_optimizer.pt",
])  # fmt: skip
@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_what_only_sounds_like_optimizer_state_is_none(name, make, run):
    for file in ("optimizer.pt", "scheduler.pt"):
        (run / "checkpoint-4" / file).unlink()
    make(run / "checkpoint-4" / name)
    fault = find_fault(run / "checkpoint-4")
    assert "save_only_model" in fault or fault == "global_step4 is a file in place of a folder"


@pytest.mark.parametrize("missing", [
    ("optimizer.pt", "scheduler.pt"), ("optimizer.pt",), ("scheduler.pt",),
])  # fmt: skip
def test_deepspeeds_state_is_not_taken_for_that_of_another_run(missing, run):
    folder = run / "checkpoint-4"
    for name in missing:
        (folder / name).unlink()
    (folder / "global_step4").mkdir()
    (folder / "global_step4" / "mp_rank_00_model_states.pt").write_bytes(b"x")
    assert find_fault(folder) is None
    job = RelOptTrainer(gpt2(seed=1), arguments(run, optim="fromage"), train_dataset=rows())
    before = weights(job.model)
    with pytest.raises(FormatError, match="DeepSpeed"):
        job.train(resume_from_checkpoint=True)
    assert same(before, weights(job.model))


def test_numbers_are_compared_as_numbers(run):
    shutil.copytree(run / "checkpoint-4", run / "checkpoint-10")
    (run / "checkpoint-best").mkdir()
    (run / "checkpoint-99").write_text("a file, not a folder")
    assert last_complete_checkpoint(run) == str(run / "checkpoint-10")


def test_there_may_be_none(tmp_path):
    assert last_complete_checkpoint(tmp_path) is None
    assert last_complete_checkpoint(tmp_path / "missing") is None
    with pytest.raises(FormatError, match="no such folder"):
        require_complete(tmp_path / "missing")


def test_trainer_goes_on_from_the_whole_one(run, said):
    cut(run / "checkpoint-4" / "optimizer.pt")
    args = arguments(run, optim="fromage", max_steps=6)
    job = RelOptTrainer(gpt2(seed=9), args, train_dataset=rows())
    job.train(resume_from_checkpoint=True)
    assert job.state.global_step == 6
    assert [entry["step"] for entry in job.state.log_history if "loss" in entry] == [2, 4, 6]
    assert said.about("checkpoint-4 is not a complete checkpoint")
    assert said.about(f"resuming from {run / 'checkpoint-2'}")


def test_trainer_starts_afresh_without_one(tmp_path, said):
    args = arguments(tmp_path / "new", optim="fromage")
    job = RelOptTrainer(gpt2(), args, train_dataset=rows())
    job.train(resume_from_checkpoint=True)
    assert job.state.global_step == 4
    assert said.about("afresh")


@pytest.mark.parametrize("kind", [str, Path])
def test_trainer_refuses_a_damaged_one_that_was_named(kind, run):
    cut(run / "checkpoint-4" / "model.safetensors")
    model = gpt2()
    before = [param.detach().clone() for param in model.parameters()]
    job = RelOptTrainer(model, arguments(run, optim="fromage"), train_dataset=rows())
    with pytest.raises(FormatError, match="checkpoint-4"):
        job.train(resume_from_checkpoint=kind(run / "checkpoint-4"))
    assert all(map(torch.equal, before, model.parameters()))


def test_sharded_weights_are_whole_only_with_every_shard(run):
    folder = run / "checkpoint-4"
    shutil.rmtree(folder)
    shutil.copytree(run / "checkpoint-2", folder)
    (folder / "model.safetensors").unlink()
    gpt2().save_pretrained(folder, max_shard_size="6KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert find_fault(folder) is None
    shards[-1].unlink()
    assert find_fault(folder) is not None


@pytest.mark.parametrize("optim", ["fromage", "madam"])
def test_from_adamw_to_ours_when_told_to_discard(optim, tmp_path, said):
    """Weights and schedule go on; the state and the peak rate are our optimizer's own."""
    saving = {"save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-3}
    first = Trainer(
        gpt2(),
        arguments(tmp_path, optim="adamw_torch", max_steps=4, **saving),
        train_dataset=rows(),
    )
    first.train()
    folder = str(tmp_path / "checkpoint-2")
    given = {"optim_args": "lr=0.01", "max_steps": 4, "logging_steps": 1}
    args = arguments(tmp_path / "after", optim=optim, **given)
    after = RelOptTrainer(gpt2(seed=1), args, train_dataset=rows())
    with pytest.raises(ConfigError, match="AdamW") as error:
        after.train(folder)
    assert optim in str(error.value).lower() and "discard_optimizer_state" in str(error.value)
    after.train(folder, discard_optimizer_state=True)
    assert after.state.global_step == 4
    logged = [entry for entry in after.state.log_history if entry.get("step", 0) > 2]
    rates = [entry["learning_rate"] for entry in logged if "loss" in entry]
    assert rates == pytest.approx([0.01 * 1 / 4])  # in the last of four steps
    assert {int(state["step"]) for state in after.optimizer.optimizer.state.values()} == {2}


def test_a_whole_checkpoint_before_weights_alone_is_taken(run, said):
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (run / "checkpoint-4" / name).unlink()
    assert last_complete_checkpoint(run) == str(run / "checkpoint-2")
    assert "save_only_model" in said.about("checkpoint-4")[0]
