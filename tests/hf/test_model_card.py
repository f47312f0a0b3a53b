"""The card describes the optimizer and the figures of the run it was written by."""

from __future__ import annotations

import json
import re

import pytest
from huggingface_hub import ModelCard
from transformers import GPT2LMHeadModel

from hf_relopt import RelOptTrainer
from hf_relopt.errors import ConfigError
from hf_relopt.hf import model_card, run_surroundings
from hf_relopt.hf.model_card import card_of_folder, write_model_card
from tests.hf.card_runs import trained
from tests.hf.tiny import arguments, gpt2, rows


@pytest.fixture(scope="module")
def madam(tmp_path_factory):
    trainer = trained(tmp_path_factory.mktemp("madam"), optim="madam", learning_rate=0.02, seed=5)
    return trainer, trainer.evaluate()


def test_madam_is_not_called_adam(madam):
    trainer, _ = madam
    text = write_model_card(trainer).read_text()
    assert "arxiv.org/abs/2006.14560" in text
    assert not re.search(r"\bAdam\b|AdamW|betas|epsilon", text)
    assert "madam" in ModelCard(text).data.tags


def test_figures_are_the_measured_ones(madam):
    trainer, measured = madam
    path = write_model_card(trainer, metrics_before={"eval_loss": 3.25}, metrics=measured)
    card = ModelCard.load(path)
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("loss", measured["eval_loss"])
    assert f"| loss | 3.25 | {measured['eval_loss']:.4g} |" in card.text


def test_without_figures_the_last_evaluation_is_taken(madam):
    trainer, measured = madam
    (result,) = ModelCard.load(write_model_card(trainer)).data.eval_results
    assert result.metric_value == measured["eval_loss"]


def test_settings_are_those_of_the_run(madam):
    trainer, _ = madam
    text = write_model_card(trainer).read_text()
    for row in ("peak learning rate | 0.02", "schedule | linear", "steps | 2 of 2",
                "sequences per step | 3", "seed | 5", "precision | float32"):  # fmt: skip
        assert f"| {row} |" in text


def test_every_weight_is_in_the_table_once(madam):
    trainer, _ = madam
    table = write_model_card(trainer).read_text().split("## What each weight follows")[1]
    rows = re.findall(r"^\| \w+ \| madam \| 0.02 \| ([\d,]+) \| ([\d,]+) \|$", table, re.MULTILINE)
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    assert sum(int(tensors.replace(",", "")) for tensors, _ in rows) == len(parameters)
    total = sum(int(count.replace(",", "")) for _, count in rows)
    assert total == sum(p.numel() for p in parameters)


def test_a_sample_cannot_break_out_of_its_fence(madam):
    trainer, _ = madam
    text = write_model_card(trainer, sample="```\n# not a heading").read_text()
    assert "````text\n```\n# not a heading\n````" in text


def test_details_reach_the_metadata(madam, tmp_path):
    trainer, _ = madam
    path = write_model_card(
        trainer, tmp_path / "card.md", model_name="a name", language="en", license="apache-2.0",
        tasks="text-generation", tags="tiny", dataset="some text", dataset_tags="user/text",
        finetuned_from="user/base",
    )  # fmt: skip
    data = ModelCard.load(path).data
    assert (data.language, data.license, data.pipeline_tag) == (
        "en",
        "apache-2.0",
        "text-generation",
    )
    assert data.datasets == ["user/text"] and data.base_model == "user/base"
    assert "tiny" in data.tags and data.model_name == "a name"
    assert {file.name for file in tmp_path.iterdir()} <= {"card.md", "relopt_loss.png"}


# --- at the end of a training, and from the folder alone ------------------------------------


def test_the_end_of_a_training_and_the_folder_make_the_same_card(told):
    written = (told / "README.md").read_text()
    assert "## Distance from the base model" in written and "fine-tuned from `base`" in written
    assert "| peak learning rate | 0.01 |" in written and "relopt_loss.png" in written
    found = card_of_folder(told)
    assert found.notes == () and (told / "README.md").read_text() == written


def test_no_card_where_the_user_says_no_or_has_one(tmp_path, said):
    class Silent(RelOptTrainer):
        model_card_at_end = False

    args = arguments(tmp_path, optim="fromage", max_steps=1)
    Silent(gpt2(), args, train_dataset=rows()).train()
    assert not (tmp_path / "README.md").exists()
    (tmp_path / "README.md").write_text("# mine\n")
    trainer = RelOptTrainer(gpt2(), args, train_dataset=rows())
    trainer.train()
    assert (tmp_path / "README.md").read_text() == "# mine\n"
    assert said.about("is kept")
    trainer.create_model_card(license="mit")  # asked for
    assert "license: mit" in (tmp_path / "README.md").read_text()
    trainer.train()
    assert "license: mit" in (tmp_path / "README.md").read_text()  # nobody has to say it again


def test_a_card_that_cannot_be_written_loses_no_training(tmp_path, said, monkeypatch):
    def broken(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(model_card, "write_card", broken)
    args = arguments(tmp_path, optim="fromage", max_steps=1)
    trainer = RelOptTrainer(gpt2(), args, train_dataset=rows())
    assert trainer.train().global_step == 1
    (line,) = said.about("the model card could not be written")
    assert "no space left" in line and f"hf-relopt card {tmp_path}" in line


def test_a_card_changed_by_hand_is_kept_unless_it_is_to_be_replaced(told, tmp_path):
    path = told / "README.md"
    path.write_text(path.read_text().replace("# run", "# my run"))
    mine = path.read_text()
    with pytest.raises(ConfigError, match=r"changed by hand.*--overwrite"):
        card_of_folder(told)
    card_of_folder(told, tmp_path / "other.md")
    assert path.read_text() == mine and (tmp_path / "other.md").is_file()
    card_of_folder(told, overwrite=True)
    assert "# my run" not in path.read_text()


def test_an_unfinished_run_has_a_card_that_says_so(told):
    record = json.loads((told / "relopt_run.json").read_text())
    (told / "relopt_run.json").write_text(json.dumps({**record, "finished": False}))
    card_of_folder(told)
    text = (told / "README.md").read_text()
    assert (
        "unfinished run** after 4 of 4 steps" in text and "unfinished" in ModelCard(text).data.tags
    )


def test_what_is_damaged_is_noted_in_the_card_and_the_rest_is_there(told):
    (told / "relopt_run.json").write_text('{"format": 1, "mod')
    for checkpoint in told.glob("checkpoint-*"):
        state = json.loads((checkpoint / "trainer_state.json").read_text())
        for entry in state["log_history"]:
            entry.update({"loss": float("nan"), "eval_loss": float("nan")})
        (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    notes = card_of_folder(told).notes
    text = (told / "README.md").read_text()
    for words in ("relopt_run.json is damaged", "training loss is not finite"):
        assert any(words in note for note in notes) and words in text
    assert ModelCard(text).data.eval_results is None and "GPT2" not in text
    assert 'AutoModelForCausalLM.from_pretrained("run")' in text


def test_a_place_that_is_no_file_is_refused(told, tmp_path):
    for place in (tmp_path, tmp_path / "nowhere" / "card.md"):
        with pytest.raises(ConfigError, match="Name a file"):
            card_of_folder(told, place)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")
@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")
def test_peft_s_own_card_does_not_replace_ours(told_run, tmp_path):
    peft = pytest.importorskip("peft")
    base = GPT2LMHeadModel.from_pretrained(told_run.parent / "base")
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=["c_fc"], fan_in_fan_out=True
    )
    args = arguments(tmp_path, optim="madam", save_strategy="steps", save_steps=4)
    trainer = RelOptTrainer(peft.get_peft_model(base, config), args, train_dataset=rows())
    trainer.train()
    written = (tmp_path / "README.md").read_text()
    trainer.save_model()
    assert (tmp_path / "README.md").read_text() == written
    data = ModelCard(written).data
    assert data.library_name == "peft" and "madam" in data.tags and data.base_model is None
    assert "## Distance from the base model" in written and str(tmp_path) not in written
    assert card_of_folder(tmp_path).notes == ()
    # A folder that PEFT has filled alone holds its empty form, which is no card of anybody.
    (tmp_path / "README.md").unlink()
    trainer.save_model()
    assert "More Information Needed" in (tmp_path / "README.md").read_text()
    card_of_folder(tmp_path)
    assert "More Information Needed" not in (tmp_path / "README.md").read_text()


def test_the_commit_is_that_of_the_beginning(tmp_path, monkeypatch):
    trainer = RelOptTrainer(
        gpt2(), arguments(tmp_path, optim="fromage", max_steps=1), train_dataset=rows()
    )
    monkeypatch.setattr(run_surroundings, "git", lambda: {"commit": "before", "dirty": False})
    trainer.train()
    monkeypatch.setattr(run_surroundings, "git", lambda: {"commit": "since", "dirty": False})
    text = write_model_card(trainer).read_text()
    assert "`before`" in text and "since" not in text


def test_a_folder_without_a_state_makes_the_same_card_and_keeps_the_better_picture(tmp_path):
    args = arguments(tmp_path, optim="madam", eval_strategy="steps", eval_steps=2)
    RelOptTrainer(gpt2(), args, train_dataset=rows(), eval_dataset=rows(8)).train()
    assert not list(tmp_path.glob("checkpoint-*"))
    written, picture = ((tmp_path / n).read_bytes() for n in ("README.md", "relopt_loss.png"))
    assert card_of_folder(tmp_path).notes == ()
    assert (tmp_path / "README.md").read_bytes() == written
    assert (tmp_path / "relopt_loss.png").read_bytes() == picture
    (tmp_path / "relopt_loss.png").unlink()  # then from the telemetry and the record
    card_of_folder(tmp_path)
    assert (tmp_path / "relopt_loss.png").is_file()
