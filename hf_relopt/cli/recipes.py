"""`hf-relopt recipes`: list them, show one, run one."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from hf_relopt.cli.recipe_command import launch_command
from hf_relopt.cli.recipe_files import (
    find_accelerate,
    find_page,
    find_recipe,
    first_sentence,
    recipe_names,
    recipes_folder,
    task_names,
)
from hf_relopt.cli.run import run_command
from hf_relopt.errors import RelOptError
from hf_relopt.shipped import ACCELERATE, accelerate_files

recipes_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Recipes: whole training runs, written down, and configurations to launch them.",
)
Name = Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="As listed.")]


@contextmanager
def _one_clear_message() -> Iterator[None]:
    try:
        yield
    except RelOptError as error:
        typer.echo(f"hf-relopt: {error}", err=True)
        raise typer.Exit(2) from None


@recipes_app.command("list")
def list_recipes() -> None:
    """List the recipes and the configurations for --accelerate."""
    with _one_clear_message():
        folder, all_names = recipes_folder(), recipe_names()
        typer.echo("Recipes, for `hf-relopt recipes run NAME`:")
        for task in task_names():
            typer.echo(f"  {task}: {first_sentence(folder / task / 'README.md')}")
            for name in (name for name in all_names if name.startswith(f"{task}/")):
                typer.echo(f"    {name}")
        typer.echo("\nWays to launch them, for `--accelerate NAME`:")
        for name in accelerate_files():
            typer.echo(f"  {name}: {first_sentence(folder / ACCELERATE / f'{name}.yaml')}")
        typer.echo("\nFor Slurm: `hf-relopt recipes show slurm > slurm.sh`")
        typer.echo(f"The files: {folder}")


@recipes_app.command()
def show(name: Name) -> None:
    """Print a recipe, the README of a task, or a configuration.

    \b
    Examples:
      hf-relopt recipes show pretrain-gpt2-124m
      hf-relopt recipes show pretrain-gpt2-124m/madam
      hf-relopt recipes show fsdp2 > mine.yaml
    """  # noqa: D301  (click wants the character itself)
    with _one_clear_message():
        typer.echo(find_page(name).read_text("utf-8"), nl=False)


@recipes_app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    options_metavar="[--accelerate NAME_OR_FILE] [--flag value ...]",
)
def run(
    context: typer.Context,
    name: Name,
    accelerate: Annotated[
        str | None,
        typer.Option(
            metavar="NAME_OR_FILE",
            show_default=False,
            help="How to launch it: single, cpu, ddp, fsdp2, hsdp, multi-node, or a file. Without "
            "it: as `accelerate config` was answered.",
        ),
    ] = None,
) -> None:
    """Train a recipe with `accelerate launch`.

    NAME is a recipe, or a task, of which Fromage's recipe is taken. Flags after it win over what
    the recipe says: those of the script, and --num_processes and others of `accelerate launch`.

    \b
    Examples:
      hf-relopt recipes run pretrain-gpt2-124m --accelerate single
      hf-relopt recipes run pretrain-gpt2-124m/madam --accelerate ddp --num_processes 8
      hf-relopt recipes run finetune-classifier-minilm --accelerate cpu --train_file mine.tsv
    """  # noqa: D301  (click wants the character itself)
    with _one_clear_message():
        recipe = find_recipe(name)
        configuration = find_accelerate(accelerate) if accelerate else None
        command = launch_command(recipe, configuration, context.args)
    typer.echo(f"hf-relopt: {shlex.join(['accelerate', 'launch', *command[3:]])}", err=True)
    sys.stderr.flush()
    raise typer.Exit(run_command(command))
