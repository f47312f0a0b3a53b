"""Every Python block of the pages runs as it is printed, and prints what the page says."""

from __future__ import annotations

import json
import re
import traceback
from pathlib import Path

import pytest
import torch
from transformers import HfArgumentParser, TrainingArguments
from transformers.trainer_optimizer import _OPTIMIZER_HANDLERS
from transformers.training_args import OptimizerNames

import hf_relopt
from hf_relopt.cli.doctor import run_doctor
from hf_relopt.options.tables import OPTIONS
from hf_relopt.plans.entries import OPTIMIZERS
from hf_relopt.rules.rule import RULES
from tests.docs.pages import PAGES, ROOT, Example, examples, name_of
from tests.docs.printed import difference
from tests.hf.tiny import arguments, gpt2, rows

EXAMPLES = [
    pytest.param(page, example, id=f"{name_of(page)}:{example.line}")
    for page in PAGES
    # They load models that are not kept; tests/hf/test_card_loading.py runs what cards say.
    if page.relative_to(ROOT).parts[0] != "model_cards"
    for example in examples(page.read_text(encoding="utf-8"))
]


@pytest.fixture(autouse=True)
def as_in_a_new_process(monkeypatch, tmp_path):
    """A folder of its own; and a page may add an optimizer of its own to the tables."""
    monkeypatch.chdir(tmp_path)
    members = (OptimizerNames._member_map_, OptimizerNames._value2member_map_, _OPTIMIZER_HANDLERS)
    tables = [(table, dict(table)) for table in (RULES, OPTIONS, OPTIMIZERS, *members)]
    names = list(OptimizerNames._member_names_)
    yield
    for name in set(OptimizerNames._member_names_) - set(names):
        type.__delattr__(OptimizerNames, name)
    OptimizerNames._member_names_[:] = names
    for table, before in tables:
        table.clear()
        table.update(before)


def test_blocks_their_output_and_their_marks_are_found():
    page = (
        "```python\none\n```\n\n```text\n1\n```\n\n"
        "```python\ntwo\n```\n\nIt prints\n\n```text\n2\n```\n\n"
        "<!-- not run: needs a GPU -->\n```python\nthree\n```\n\n"
        "```bash\nfour\n```\n"
    )
    assert list(examples(page)) == [
        Example(2, "one\n", "1\n", None),
        Example(10, "two\n", None, None),
        Example(21, "three\n", None, "needs a GPU"),
    ]


def test_each_script_of_the_gallery_runs_and_says_what_it_prints():
    scripts = list(examples((ROOT / "docs/gallery.md").read_text(encoding="utf-8")))
    assert len(scripts) >= 5
    assert all(script.output and not script.not_run for script in scripts)


def test_the_page_s_optimizer_works_by_name_everywhere(tmp_path, capsys):
    """Its class and three entries are all there is to write: nothing in hf or cli knows it."""
    (script,) = examples((ROOT / "docs/adding-an-optimizer.md").read_text(encoding="utf-8"))
    exec(script.code, {"__name__": "__main__"})
    hf_relopt.register()
    words = ["--output_dir", str(tmp_path), "--optim", "relative_sign", "--use_cpu"]
    (typed,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(words)
    assert typed.optim is OptimizerNames("relative_sign")
    args = arguments(tmp_path, optim="relative_sign", optim_args="min_scale=0.05", max_steps=1)
    with pytest.raises(hf_relopt.ConfigError, match=r"p_bound.*belongs to fromage"):
        arguments(tmp_path, optim="relative_sign", optim_args="p_bound=1.0")
    with pytest.raises(hf_relopt.ConfigError, match=r"Drop --weight_decay\.$"):
        arguments(tmp_path, optim="relative_sign", weight_decay=0.1)

    model = gpt2()
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    trainer = hf_relopt.RelOptTrainer(model=model, args=args, train_dataset=rows(4))
    trainer.train()
    assert {group["rule"] for group in trainer.optimizer.param_groups} == {"relative_sign"}
    assert args.learning_rate == OPTIMIZERS["relative_sign"].from_scratch_lr
    weight = before["transformer.h.0.mlp.c_fc.weight"]
    moved = (weight - model.transformer.h[0].mlp.c_fc.weight.detach()).abs()
    assert torch.allclose(moved, 0.01 * weight.square().mean().sqrt().clamp(min=0.05))

    trainer.create_model_card()
    card = Path(tmp_path, "README.md").read_text(encoding="utf-8")
    assert re.search(r"\| optimizer \| RelativeSign: each entry .* \(.*\bmin_scale 0\.05", card)
    assert "- relative_sign\n" in card

    model.config.architectures = ["GPT2LMHeadModel"]
    model.config.save_pretrained(tmp_path / "model")
    capsys.readouterr()
    said = {"optim": "relative_sign", "optim_args": "min_scale=0.05", "as_json": True}
    assert run_doctor(model=str(tmp_path / "model"), **said) == 0
    found = json.loads(capsys.readouterr().out)
    assert {group["follows"] for group in found["plan"]["groups"]} == {"relative_sign"}
    assert found["memory"]["per_parameter"]["state"] == 0
    assert run_doctor(optim="relative_sing") == 2
    assert "Did you mean relative_sign?" in capsys.readouterr().err


# PEFT itself still asks for the old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")
@pytest.mark.parametrize(("page", "example"), EXAMPLES)
def test_example_runs_and_prints_what_its_page_says(page, example, capsys):
    if example.not_run:
        pytest.skip(example.not_run)
    # Blank lines above: a traceback names the line of the page.
    code = compile("\n" * (example.line - 1) + example.code, str(page), "exec")
    try:
        exec(code, {"__name__": "__main__"})
    except Exception:
        pytest.fail(traceback.format_exc(), pytrace=False)
    if example.output is not None:
        wrong = difference(example.output, capsys.readouterr().out)
        assert wrong is None, wrong
