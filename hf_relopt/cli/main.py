"""`hf-relopt`: the commands, what they are called and what their --help says."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hf_relopt.cli.recipes import recipes_app
from hf_relopt.cli.run import run_command
from hf_relopt.errors import RelOptError

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
    """Fromage and Madam for Hugging Face training."""


# Everything after the command's name is the command's own: no option of it is read here.
@app.command(context_settings={"allow_interspersed_args": False})
def run(
    command: Annotated[
        list[str],
        typer.Argument(metavar="CMD [ARGS]", show_default=False, help="A command and its options."),
    ],
) -> None:
    """Run a command in which --optim fromage, madam, fromage_spectral and fromage_momentum work.

    The script needs no change: every Python that the command starts, directly or through other
    programs, knows the names as soon as it imports transformers' TrainingArguments. Options
    for the optimizer go into --optim_args.

    \b
    Examples:
      hf-relopt run python train.py --optim fromage --learning_rate 0.01
      hf-relopt run torchrun --nproc_per_node 2 train.py --optim madam
      hf-relopt run accelerate launch train.py --optim fromage --optim_args "p_bound=2.0"
      hf-relopt run trl sft --model_name_or_path MODEL --dataset_name DATA --optim fromage

    \b
    CMD is looked up as your shell does it. Its Python must have hf_relopt installed, and is
    refused with -S, -E or -I, which switch off what this relies on (PYTHONPATH).
    An error of ours that the script does not catch ends in one message; HF_RELOPT_TRACEBACK=1
    shows the traceback. The exit code is the command's own; 127: no such command; 126: it cannot
    be run.
    """  # noqa: D301  click looks for the character itself, which a raw string does not hold
    raise typer.Exit(run_command(command))


@app.command()
def doctor(
    accelerate: Annotated[
        str | None,
        typer.Option(
            "--accelerate",
            metavar="NAME_OR_FILE",
            help="An Accelerate configuration: a file that `accelerate config` wrote, or the name "
            "of one that hf_relopt ships. Without it: the environment as it is.",
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
        typer.Option(
            "--optim", metavar="NAME", help="fromage, madam, fromage_spectral or fromage_momentum."
        ),
    ] = "fromage",
    optim_args: Annotated[
        str | None,
        typer.Option("--optim_args", metavar="TEXT", help="As in training: name=value,..."),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option("--processes", min=1, metavar="N", help="In place of num_processes."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="NAME",
            help="Of the weights: float32, bfloat16 or float16. Without it: what the model's "
            "config.json says, or float32.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The facts as a JSON object.")] = False,
) -> None:
    """Say before a run whether it would be exact, what it would follow, and what it takes.

    Nothing is trained and no weights are read or downloaded: a model of 7 billion parameters
    costs seconds. Shows the verdict on the launch mode, the plan, the bytes per rank of weights,
    gradients and optimizer state beside AdamW's, and known faults of what is installed.

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
