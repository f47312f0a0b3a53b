"""`hf-relopt`: the commands, with their names and --help texts."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hf_relopt.cli.card import card
from hf_relopt.cli.compare import compare
from hf_relopt.cli.compress import compress
from hf_relopt.cli.distance import distance
from hf_relopt.cli.recipes import recipes_app
from hf_relopt.cli.report import report
from hf_relopt.cli.run import run_command
from hf_relopt.errors import RelOptError
from hf_relopt.plans.entries import OPTIMIZERS

NAMES = " or ".join(", ".join(OPTIMIZERS).rsplit(", ", 1))
# Plain text: examples must come out as they can be typed, in a log file as on a terminal.
app = typer.Typer(
    name="hf-relopt",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.add_typer(recipes_app, name="recipes")


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"hf_relopt {version('hf_relopt')}")
        except PackageNotFoundError:
            typer.echo("hf_relopt (run from its source, not installed)")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Relative-trust optimizers for Hugging Face training."""


# Everything after the command's name is the command's own: no option of it is read here.
@app.command(context_settings={"allow_interspersed_args": False})
def run(
    command: Annotated[
        list[str],
        typer.Argument(metavar="CMD [ARGS]", show_default=False, help="A command and its options."),
    ],
    telemetry: Annotated[
        bool,
        typer.Option(
            "--telemetry",
            help="Measure the steps that the script's Trainer logs: metrics in its log, each "
            "layer's numbers in telemetry.jsonl, what the run is in relopt_run.json, for `report` "
            "and `card`. Sets HF_RELOPT_TELEMETRY=1.",
        ),
    ] = False,
) -> None:
    """Run a command in which --optim fromage and the other names of hf_relopt work.

    The script needs no change: every Python that the command starts, directly or through other
    programs, knows the names as soon as it imports transformers' TrainingArguments. Options
    for the optimizer go into --optim_args.

    \b
    Examples:
      hf-relopt run python train.py --optim fromage --learning_rate 0.01
      hf-relopt run torchrun --nproc_per_node 2 train.py --optim madam
      hf-relopt run accelerate launch train.py --optim fromage --optim_args "p_bound=2.0"
      hf-relopt run trl sft --model_name_or_path MODEL --dataset_name DATA --optim fromage
      hf-relopt run --telemetry python train.py --optim madam

    \b
    CMD is looked up on PATH, as in your shell. Its Python must have hf_relopt installed. Python's
    flags -S, -E and -I are refused, since they switch off what this relies on (PYTHONPATH).
    An error of hf_relopt that the script does not catch ends in one message;
    HF_RELOPT_TRACEBACK=1 shows the traceback. The exit code is the command's own; 127: no such
    command; 126: it cannot be run.
    """  # noqa: D301  click looks for the character itself, which a raw string does not hold
    raise typer.Exit(run_command(command, telemetry))


@app.command()
def doctor(
    accelerate: Annotated[
        str | None,
        typer.Option(
            "--accelerate",
            metavar="NAME_OR_FILE",
            help="An Accelerate configuration: a file that `accelerate config` wrote, DeepSpeed's "
            "own JSON, or the name of one that hf_relopt ships. Default: the environment "
            "variables.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME_OR_PATH",
            help="A model's folder or its name on the hub. Only its config.json is read.",
        ),
    ] = None,
    optim: Annotated[
        str,
        typer.Option("--optim", metavar="NAME", help=f"{NAMES}."),
    ] = next(iter(OPTIMIZERS)),
    optim_args: Annotated[
        str | None,
        typer.Option(
            "--optim_args",
            metavar="TEXT",
            help="Options of the optimizer, as in training: name=value,...",
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes",
            min=1,
            metavar="N",
            help="Number of processes, in place of the configuration's num_processes.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="NAME",
            help="Dtype of the weights: float32, bfloat16 or float16. Default: that of the "
            "model's config.json, or float32.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Check before a run whether its steps would be exact; show its plan and its memory.

    Nothing is trained, and no weights are read or downloaded: a model of 7 billion parameters
    takes seconds. Shows the verdict on the launch mode, the plan, the bytes per rank of weights,
    gradients and optimizer state (with AdamW's to compare), and known faults of the installed
    versions.

    \b
    Examples:
      hf-relopt doctor
      hf-relopt doctor --accelerate fsdp2 --processes 8
      hf-relopt doctor --model MODEL --optim madam --optim_args "p_scale=5.0"
      hf-relopt doctor --accelerate fsdp2 --model MODEL --dtype bfloat16 --json

    \b
    The exit code is 0 if the launch mode is exact, 1 if training would refuse it, 2 for a mistake
    in the options or in a file.
    """  # noqa: D301
    from hf_relopt.cli.doctor import run_doctor

    raise typer.Exit(
        run_doctor(
            accelerate=accelerate,
            model=model,
            optim=optim,
            optim_args=optim_args,
            processes=processes,
            dtype=dtype,
            as_json=as_json,
        )
    )


app.command()(distance)
app.command()(report)
app.command()(compare)
app.command()(card)
app.command()(compress)


def main() -> None:
    """Entry point of the console script `hf-relopt`."""
    # Always by this name, also as `python -m hf_relopt.cli.main`.
    try:
        app(prog_name="hf-relopt")
    except RelOptError as error:
        print(f"hf-relopt: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
