"""`hf-relopt`: the commands, what they are called and what their --help says."""

from __future__ import annotations

from typing import Annotated

import typer

from hf_relopt.cli.recipes import recipes_app
from hf_relopt.cli.run import run_command

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
    """Run a command in which --optim fromage and --optim madam work.

    The script needs no change: every Python that the command starts, directly or through other
    programs, knows the two names as soon as it imports transformers' TrainingArguments. Options
    for the optimizer go into --optim_args.

    \b
    Examples:
      hf-relopt run python train.py --optim fromage --learning_rate 0.01
      hf-relopt run torchrun --nproc_per_node 2 train.py --optim madam
      hf-relopt run accelerate launch train.py --optim fromage --optim_args "p_bound=2.0"
      hf-relopt run trl sft --model_name_or_path MODEL --dataset_name DATA --optim fromage

    \b
    CMD is looked up as your shell does it. Its Python must have hf_relopt installed, and must
    not be started with -S, -E or -I, which switch off what this relies on (PYTHONPATH).
    The exit code is the command's own; 127: no such command; 126: it cannot be run.
    """  # noqa: D301  (click wants the character itself)
    raise typer.Exit(run_command(command))


def main() -> None:
    """Entry point of the console script `hf-relopt`."""
    # Always by this name, also as `python -m hf_relopt.cli.main`.
    app(prog_name="hf-relopt")


if __name__ == "__main__":
    main()
