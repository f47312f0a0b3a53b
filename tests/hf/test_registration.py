"""The names are members of Transformers' enum: parser, files, pickles and Trainer know them."""

from __future__ import annotations

import json
import pickle
import sys

import pytest
import torch
from transformers import HfArgumentParser, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

import hf_relopt
from hf_relopt import ConfigError, Fromage, Madam
from hf_relopt.hf import registration
from hf_relopt.plans.entries import OPTIMIZERS
from tests.hf.tiny import arguments, forked_python, gpt2, passed, rows

CLASSES = {
    "fromage": Fromage,
    "madam": Madam,
    "fromage_spectral": Fromage,
    "fromage_momentum": Fromage,
    "muonh": Fromage,
    "adamh": Fromage,
}


def test_help_lists_the_names(capsys):
    with pytest.raises(SystemExit) as stop:
        HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(["--help"])
    assert stop.value.code == 0
    choices = capsys.readouterr().out.split("--optim {")[1].split("}")[0].split(",")
    assert choices[-len(OPTIMIZERS) :] == list(OPTIMIZERS) and set(CLASSES) <= set(OPTIMIZERS)


@pytest.mark.parametrize("name", CLASSES)
def test_command_line_takes_the_name_and_typed_options(name, tmp_path):
    option = "p_scale=5" if name == "madam" else "p_bound=1.5"
    line = ["--output_dir", str(tmp_path), "--optim", name, "--optim_args", option, "--use_cpu"]
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(line)
    assert args.optim is OptimizerNames(name)
    optimizer = Trainer(gpt2(), args, train_dataset=rows()).create_optimizer()
    assert type(optimizer) is CLASSES[name]
    key, _, value = option.partition("=")
    assert float(value) in {group.get(key) for group in optimizer.param_groups}


def test_unknown_name_is_the_parser_s_usage_error(capsys):
    with pytest.raises(SystemExit) as stop:
        HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(
            ["--output_dir", "x", "--optim", "fromagee"]
        )
    assert stop.value.code == 2
    assert "fromagee" in capsys.readouterr().err
    with pytest.raises(ValueError, match="fromagee"):
        TrainingArguments(output_dir="x", optim="fromagee")


@pytest.mark.parametrize("kind", ["json", "yaml"])
def test_argument_file(kind, tmp_path):
    file = tmp_path / f"arguments.{kind}"
    given = {"output_dir": str(tmp_path), "optim": "madam", "optim_args": "beta=0.9"}
    # Every JSON document is a YAML document too, but a person writes the other form.
    lines = [f"{key}: {value}" for key, value in given.items()]
    file.write_text(json.dumps(given) if kind == "json" else "\n".join(lines))
    parser = HfArgumentParser(TrainingArguments)
    (args,) = getattr(parser, f"parse_{kind}_file")(str(file))
    assert args.optim is OptimizerNames("madam")
    assert args.optim_args == "beta=0.9"


@pytest.mark.parametrize("name", ["fromage", "fromage_spectral"])
def test_arguments_survive_dict_and_json(name, tmp_path):
    args = arguments(tmp_path, optim=name, optim_args="p_bound=2.0")
    assert args.to_dict()["optim"] == name
    again = TrainingArguments(**json.loads(args.to_json_string()))
    assert again.to_dict() == args.to_dict()
    (parsed,) = HfArgumentParser(TrainingArguments).parse_dict(args.to_dict())
    assert parsed.optim is args.optim


def test_set_optimizer_takes_the_name_and_checks_the_options(tmp_path):
    args = arguments(tmp_path).set_optimizer(name="fromage", learning_rate=0.02, args="p_bound=2.0")
    optimizer = Trainer(gpt2(), args, train_dataset=rows()).create_optimizer()
    assert optimizer.param_groups[0]["lr"] == 0.02
    assert optimizer.param_groups[0]["p_bound"] == 2.0
    with pytest.raises(ConfigError, match="p_bound"):
        args.set_optimizer(name="fromage", args="p_bound=-1")


def test_the_members_are_like_the_others():
    for name in CLASSES:
        member = OptimizerNames(name)
        assert isinstance(member, OptimizerNames)
        assert member == name
        assert member is getattr(OptimizerNames, name.upper())
        assert member in list(OptimizerNames)
        assert pickle.loads(pickle.dumps(member)) is member
        assert member != OptimizerNames.ADAMW_TORCH


def test_registering_again_changes_nothing():
    before = list(OptimizerNames), TrainingArguments.__post_init__
    hf_relopt.register()
    hf_relopt.register()
    assert (list(OptimizerNames), TrainingArguments.__post_init__) == before


def test_other_optimizers_stay_as_they_were(tmp_path):
    args = arguments(tmp_path, optim="adamw_torch", weight_decay=0.1, optim_args="anything=1")
    optimizer = Trainer(gpt2(), args, train_dataset=rows()).create_optimizer()
    assert type(optimizer) is torch.optim.AdamW
    assert args.learning_rate == 5e-5


def test_saved_arguments_load_where_hf_relopt_was_never_imported(tmp_path):
    for name in CLASSES:
        # A learning rate that was given is a plain number: only the name brings hf_relopt along.
        args = arguments(tmp_path, optim=name, optim_args="seed=2", learning_rate=0.02)
        torch.save(args, tmp_path / f"{name}.bin")
    code = """
        import sys, torch
        # What Trainer and TRL do with such a file; nobody here has imported hf_relopt.
        assert "hf_relopt" not in sys.modules
        for name in sys.argv[2:]:
            args = torch.load(f"{sys.argv[1]}/{name}.bin", weights_only=False)
            from transformers.training_args import OptimizerNames
            assert args.optim is OptimizerNames(name), args.optim
            assert args.to_dict()["optim"] == name
            assert args.optim_args == "seed=2"
    """
    passed(forked_python(code, str(tmp_path), *CLASSES))


def test_transformers_that_moved_the_tables_is_a_clear_error_from_register():
    code = """
        import transformers.training_args as training_args
        import transformers.trainer_optimizer as trainer_optimizer
        from hf_relopt.hf.registration import SUPPORTED, register
        from hf_relopt import UnsupportedSetup

        def refused(what):
            try:
                register()
            except UnsupportedSetup as error:
                for part in (what, SUPPORTED, "optimizer_cls_and_kwargs"):
                    assert part in str(error), (part, str(error))
                assert "\\n" not in str(error)
                return
            raise AssertionError(f"{what}: not refused")

        for module, name in [
            (trainer_optimizer, "_OPTIMIZER_HANDLERS"), (training_args, "OptimizerNames")
        ]:
            kept = getattr(module, name)
            delattr(module, name)
            refused(name)
            setattr(module, name, frozenset())
            refused(name)
            setattr(module, name, kept)
        post_init = training_args.TrainingArguments.set_optimizer
        del training_args.TrainingArguments.set_optimizer
        refused("set_optimizer")
        training_args.TrainingArguments.set_optimizer = post_init
        register()
    """
    passed(forked_python(code))


LOOK_ALIKE = {
    "training_args.OptimizerNames": """
        class Moved:
            def __call__(self, value): return kept[0](value)
            def __getattr__(self, name): return getattr(kept[0], name)
        look_alike = Moved()
    """,
    "trainer_optimizer._OPTIMIZER_HANDLERS": """
        from types import MappingProxyType
        look_alike = MappingProxyType(kept[0])
    """,
}


@pytest.mark.parametrize("place", LOOK_ALIKE)
def test_moved_tables_break_no_script_that_does_not_use_us(place, tmp_path):
    """The table becomes something else with the same uses, before the package's hook looks."""
    code = """
        import importlib, importlib.util, sys, textwrap
        import transformers
        hook, place, folder, make = sys.argv[1:]
        assert "hf_relopt" not in sys.modules
        # As in a process that has not imported these yet.
        for name in ("training_args", "trainer_optimizer", "trainer"):
            del sys.modules["transformers." + name]
        for name in ("training_args", "trainer", "TrainingArguments", "Trainer"):
            vars(transformers).pop(name, None)
        spec = importlib.util.spec_from_file_location("first", hook)
        first = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(first)
        module, _, table = place.rpartition(".")
        kept = []
        def move(loaded):
            kept.append(getattr(loaded, table))
            exec(textwrap.dedent(make), globals())
            setattr(loaded, table, look_alike)
        first.call_when_imported("transformers." + module, move)

        import hf_relopt
        from transformers import Trainer, TrainingArguments
        from tests.hf.tiny import arguments, gpt2, rows
        args = arguments(folder, optim="adamw_torch", max_steps=1)
        Trainer(gpt2(), args, train_dataset=rows()).train()
        assert kept
        print("trained")
        try:
            args = arguments(folder, optim="fromage")
            Trainer(gpt2(), args, train_dataset=rows()).train()
        except hf_relopt.UnsupportedSetup as error:
            assert table in str(error), str(error)
            print("refused")
    """
    done = forked_python(
        code, hf_relopt.import_hook.__file__, place, str(tmp_path), LOOK_ALIKE[place]
    )
    assert {"trained", "refused"} <= set(passed(done).splitlines()), done.stdout + done.stderr
    assert done.stderr.count(place.partition(".")[2]) <= 1  # a warning, once


@pytest.mark.parametrize(("version", "told"), [("5.99.0", 1), ("5.3.0", 1), (None, 0)])
def test_a_release_that_nobody_tried_gets_one_line_where_we_are_asked_for(
    version, told, tmp_path, said, monkeypatch
):
    registration._warn_if_untried.cache_clear()
    transformers = sys.modules["transformers"]  # it has replaced itself when it was imported
    monkeypatch.setattr(transformers, "__version__", version or transformers.__version__)
    arguments(tmp_path, optim="adamw_torch")
    assert not said.about("never tested")
    for name in ("fromage", "madam"):
        arguments(tmp_path, optim=name)
    lines = said.about("never tested")
    assert len(lines) == told
    assert all(f"transformers {version} " in line and "5.4 to 5." in line for line in lines)
    registration._warn_if_untried.cache_clear()
