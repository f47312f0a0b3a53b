"""The command line: our defaults stand only where the user said nothing; help is short."""

from __future__ import annotations

import finetune_classifier
import finetune_squad
import pretrain_clm
import pytest
import sft_chat
from causal_training import SMALL_BLOCK
from command_line import clips_for_nothing
from command_line import read_request as read
from typed_command import expanded

from hf_relopt.errors import ConfigError


def read_request(argv, recipe=pretrain_clm.RECIPE):
    return read(recipe, expanded(argv))


def test_defaults_train_the_preset_with_a_decaying_rate():
    request, given = read_request([])
    args = request.args
    assert given == set()
    assert (args.optim, args.lr_scheduler_type) == ("fromage_spectral", "linear")
    assert args.max_steps == pretrain_clm.RECIPE.defaults["max_steps"]
    assert args.learning_rate == 5e-5  # the Trainer's, for which the preset takes its own
    assert request.data.is_standard_library and request.model.is_small_gpt2
    assert (request.blocks.block_size, SMALL_BLOCK) == (None, 128)


def test_what_was_given_is_obeyed():
    words = ["--learning_rate", "0.5", "--lr-scheduler-type", "cosine", "--logging_steps=3"]
    request, given = read_request(words)
    args = request.args
    assert (args.learning_rate, args.lr_scheduler_type, args.logging_steps) == (0.5, "cosine", 3)
    assert given == {"learning_rate", "lr_scheduler_type", "logging_steps"}


def test_epochs_that_were_asked_for_are_not_cut_by_our_steps():
    assert read_request(["--num_train_epochs", "2"])[0].args.max_steps == -1
    assert read_request(["--num_train_epochs", "2", "--max_steps", "9"])[0].args.max_steps == 9


@pytest.mark.parametrize(("optim", "rate"), pretrain_clm.FROM_SCRATCH_RATES.items())
def test_each_optimizer_has_its_own_rate(optim, rate):
    assert read_request(["--optim", optim])[0].args.learning_rate == rate


@pytest.mark.parametrize("optim", ["fromage_spectral", "fromage_momentum", "muonh", "adamh"])
def test_presets_take_the_rate_of_hf_relopt(optim):
    """The rate that is best for the paper's rule is not theirs."""
    assert read_request(["--optim", optim])[0].args.learning_rate == 5e-5


@pytest.mark.parametrize(
    ("optim", "text", "for_nothing"),
    [
        ("fromage", None, True),
        ("fromage", "p_bound=2,scale=row,vector.lr=1e-3,*.bias.skip=true", True),
        ("fromage", "direction=momentum", False),
        ("fromage", "vector.rule=madam", False),
        ("fromage", "head.direction=adam", False),
        ("fromage_spectral", None, False),
        ("madam", None, False),
        ("adamw_torch", None, False),
    ],
)
def test_clipping_is_left_out_only_where_nothing_sees_it(optim, text, for_nothing):
    words = ["--optim", optim, *(["--optim_args", text] if text else [])]
    assert clips_for_nothing(read_request(words)[0].args) is for_nothing


def test_pretrained_models_take_the_trainers_rate():
    words = ["--model_name_or_path", "somewhere", "--optim", "fromage"]
    assert read_request(words)[0].args.learning_rate == 5e-5


def test_yaml_file(tmp_path):
    (tmp_path / "flags.yaml").write_text("optim: madam\nnum_train_epochs: 1\nblock_size: 32\n")
    request, given = read_request([str(tmp_path / "flags.yaml")])
    said = (request.args.optim, request.args.max_steps, request.blocks.block_size)
    assert said == ("madam", -1, 32)
    assert given == {"optim", "num_train_epochs", "block_size"}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("none.json", None, "neither a flag"),
        ("list.json", "[1]", "names and values, as in `max_steps: 100`, not a list"),
        ("null.json", "null", "not nothing"),
        ("deep.json", "[" * 100_000, "cannot read"),
        ("cut.json", '{"optim": "fro', "cannot read"),
        ("cut.yaml", "optim: [fro", "cannot read"),
        ("tab.yaml", "optim:\tfromage\n\tseed: 1", "cannot read"),
        ("numbers.yaml", "1: 2", "names that are not words"),
        ("lists.yaml", "label_names: [[a]]", "lists in the list"),
        ("other.json", '{"optimizer": "fromage"}', "did you mean --optim?"),
        ("kind.yaml", "max_steps: many", "invalid int value: 'many'"),
        ("half.yaml", "max_steps: 2.5", "invalid int value: '2.5'"),
    ],
)
def test_bad_files(name, text, words, tmp_path):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_request([str(tmp_path / name)])


def test_flags_beside_a_file_win(tmp_path):
    (tmp_path / "flags.yaml").write_text(
        "optim: madam\noptim_args: p_scale=5\nlearning_rate: 3e-2\nuse_cpu: true\n"
        "dataset_name: a/b\nlr_scheduler_kwargs: {num_cycles: 2}\nmax_steps: -1\n"
    )
    words = [str(tmp_path / "flags.yaml"), "--optim_args=", "--train_file", "x", "--seed", "7"]
    request, given = read_request(words)
    args = request.args
    assert (args.optim, args.optim_args, args.learning_rate, args.seed) == ("madam", "", 0.03, 7)
    assert (args.use_cpu, args.max_steps) == (True, -1)
    assert args.lr_scheduler_kwargs == {"num_cycles": 2}
    assert (request.data.dataset_name, request.data.train_file) == (None, "x")
    assert {"optim", "seed", "train_file"} <= given and "dataset_name" not in given


# TRL's own default for gradient_checkpointing is not None.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "recipe", [r.RECIPE for r in (pretrain_clm, finetune_classifier, finetune_squad, sft_chat)]
)
def test_every_recipe_trains_the_preset_where_nothing_is_said(recipe):
    request, given = read_request(["--use_cpu"], recipe)
    assert (request.args.optim, given) == ("fromage_spectral", {"use_cpu"})
    assert request.args.logging_first_step


@pytest.mark.parametrize("main", [pretrain_clm.main, finetune_classifier.main])
def test_help_is_short_and_help_all_is_whole(main, capsys):
    shown = {}
    for flag in ("--help", "--help_all"):
        with pytest.raises(SystemExit) as end:
            main([flag])
        assert end.value.code == 0
        shown[flag] = capsys.readouterr().out
    for words in (
        "fromage",
        "madam",
        "fromage_spectral",
        "adamw_torch",
        "--optim_args",
        "Model:",
        "--train_file",
    ):
        assert words in shown["--help"]
    assert "--adam_beta1" not in shown["--help"]
    assert "--adam_beta1" in shown["--help_all"]
    assert len(shown["--help"].splitlines()) < 90
