"""`hf-relopt recipes`: list them, show one, run one."""

from __future__ import annotations

import difflib
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_relopt.cli.as_typed import program_word, python_word
from hf_relopt.cli.launch import first_look
from hf_relopt.cli.recipe_command import launch_command
from hf_relopt.cli.recipe_files import (
    STUDIES,
    chosen_recipe,
    find_accelerate,
    find_page,
    find_recipe,
    find_study,
    first_sentence,
    recipe_names,
    recipes_folder,
    task_names,
)
from hf_relopt.cli.run import run_command
from hf_relopt.errors import ConfigError, RelOptError
from hf_relopt.shipped import ACCELERATE, DOOR, accelerate_files

recipes_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Recipes: complete training runs with their settings, and configurations to launch them.",
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
def list_recipes(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """List the recipes and the configurations for --accelerate."""
    with _one_clear_message():
        facts = _facts()
        if as_json:
            typer.echo(json.dumps(facts, indent=2))
            return
        typer.echo("Recipes, for `hf-relopt recipes run NAME`:")
        for task in facts["tasks"]:
            typer.echo(f"  {task['name']}: {task['what']}")
            for recipe in task["recipes"]:
                mark = "  (default of the task)" if recipe == task["chosen"] else ""
                typer.echo(f"    {recipe}{mark}")
        typer.echo("\nStudies, for `hf-relopt recipes run NAME`, without --accelerate:")
        for study in facts["studies"]:
            typer.echo(f"  {study['name']}: {study['what']}")
        typer.echo("\nWays to launch them, for `--accelerate NAME`:")
        for way in facts["accelerate"]:
            typer.echo(f"  {way['name']}: {way['what']}")
        typer.echo("\nFor Slurm: `hf-relopt recipes show slurm > slurm.sh`")
        typer.echo(f"The files: {facts['folder']}")


def _facts() -> dict[str, Any]:
    """What `list` shows; docs/recipes.md has the keys."""
    folder, names = recipes_folder(), recipe_names()
    tasks = [
        {
            "name": task,
            "what": first_sentence(folder / task / "README.md"),
            "chosen": chosen_recipe(task),
            "script": find_recipe(task).script.name,
            "recipes": [name for name in names if name.startswith(f"{task}/")],
        }
        for task in task_names()
    ]
    ways = [
        {"name": name, "what": first_sentence(folder / ACCELERATE / f"{name}.yaml")}
        for name in accelerate_files()
    ]
    studies = [
        {"name": name, "what": first_sentence(folder / name / "README.md"), "script": script}
        for name, script in STUDIES.items()
    ]
    return {"folder": str(folder), "tasks": tasks, "studies": studies, "accelerate": ways}


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
    options_metavar="[--accelerate NAME_OR_FILE] [--dry-run] [--flag value ...]",
)
def run(
    context: typer.Context,
    name: Name,
    accelerate: Annotated[
        str | None,
        typer.Option(
            metavar="NAME_OR_FILE",
            show_default=False,
            help="How to launch it: single, cpu, ddp, fsdp2, hsdp, multi-node, or a file. "
            "Default: your own `accelerate config`.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the command without running it.")
    ] = False,
) -> None:
    """Train a recipe with `accelerate launch`.

    NAME is a recipe, or a task, which stands for its default recipe (see `list`). Flags after NAME
    override the recipe: those of the script, and --num_processes and others of `accelerate launch`.
    The exit code is the script's own. A study takes its own flags, and runs in one process.

    \b
    Examples:
      hf-relopt recipes run pretrain-gpt2-124m --accelerate single
      hf-relopt recipes run pretrain-gpt2-124m/madam --accelerate ddp --num_processes 8
      hf-relopt recipes run finetune-classifier-minilm --accelerate cpu --train_file mine.tsv
      hf-relopt recipes run pretrain-llama-350m --accelerate fsdp2 --dry-run
      hf-relopt recipes run curvature --depths 4 32
    """  # noqa: D301  (click wants the character itself)
    with _one_clear_message():
        _refuse_slips(context.args)
        study = find_study(name)
        if study is not None and accelerate:
            raise ConfigError(f"{name} runs in one process: leave --accelerate {accelerate} out.")
    if study is not None:
        raise typer.Exit(_run_study([str(study), *context.args], dry_run=dry_run))
    with _one_clear_message():
        recipe = find_recipe(name)
        configuration = find_accelerate(accelerate) if accelerate else None
        command = launch_command(recipe, configuration, context.args)
    words = shlex.join(["accelerate", "launch", *command[3:]])
    if dry_run:
        typer.echo(words)
        return
    if code := first_look(command):
        raise typer.Exit(code)
    typer.echo(f"hf-relopt: {words}", err=True)
    sys.stderr.flush()
    typed = [name, *(["--accelerate", accelerate] if accelerate else []), *context.args]
    os.environ[DOOR] = json.dumps([_front(), typed])
    raise typer.Exit(run_command(command))


def _run_study(words: list[str], *, dry_run: bool) -> int:
    shown = shlex.join([python_word(), *words])
    if dry_run:
        typer.echo(shown)
        return 0
    typer.echo(f"hf-relopt: {shown}", err=True)
    sys.stderr.flush()
    return run_command([sys.executable, *words])


def _refuse_slips(words: Sequence[str]) -> None:
    """Raise ConfigError for a flag that is nearly one of this command, and not one of a script."""
    for word in words:
        flag = word.partition("=")[0]
        near = difflib.get_close_matches(flag, ("--accelerate", "--dry-run"), n=1, cutoff=0.85)
        if near and flag != near[0]:
            raise ConfigError(f"unknown argument {flag}; did you mean {near[0]}?")


def _front() -> list[str]:
    """The command up to the recipe's name, as it can be typed again in this directory."""
    if Path(sys.argv[0]).name == "hf-relopt":
        return [program_word(sys.argv[0]), "recipes", "run"]
    return [python_word(), "-m", "hf_relopt", "recipes", "run"]
