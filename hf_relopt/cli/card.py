"""`hf-relopt card RUN_DIR`: the model card of a run, from its folder."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_relopt.errors import RelOptError

DONE, PARTIAL, USAGE = 0, 1, 2


def card(
    run_dir: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_DIR", show_default=False, help="The output_dir of a run, finished or not."
        ),
    ],
    push: Annotated[
        str | None,
        typer.Option("--push", metavar="REPO", help="Upload the folder to the hub as USER/MODEL."),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="With --push: a new repository is private.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="MODEL",
            help="The model that training began with, a folder or a name on the hub, in place of "
            "the one that the run recorded. It may be downloaded.",
        ),
    ] = None,
    distance: Annotated[
        bool, typer.Option(help="Measure the distance from the base model.")
    ] = True,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Default: README.md in RUN_DIR."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a card that was written by hand.")
    ] = False,
    name: Annotated[
        str | None, typer.Option("--name", metavar="TEXT", help="Title. Default: the folder's.")
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(
            "--license", metavar="ID", help="As the hub spells it. Default: the base model's."
        ),
    ] = None,
    language: Annotated[
        list[str] | None,
        typer.Option("--language", metavar="CODE", help="As en. May be repeated."),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option("--dataset", metavar="NAME", help="A data set on the hub. May be repeated."),
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option("--tag", metavar="WORD", help="A further tag. May be repeated."),
    ] = None,
) -> None:
    """Write the model card of a run from what its folder holds.

    RelOptTrainer writes a card at the end of training. This writes the same card later: after
    another evaluation, with a license, with a base model that was not on the machine, or of a run
    that was killed. It reads relopt_run.json, trainer_state.json (in the folder or its newest
    checkpoint), telemetry.jsonl and, of recipes, run.json.

    \b
    Examples:
      hf-relopt card runs/demo
      hf-relopt card runs/demo --license apache-2.0 --language en --dataset nyu-mll/glue
      hf-relopt card out --base nreimers/MiniLM-L6-H384-uncased
      hf-relopt card out --push USER/MODEL --private

    \b
    The exit code is 0; 1 if the card lacks something or was not uploaded (the output says what, and
    the card does, too); 2 for a mistake in the options, a folder without a run, or a card in its
    place that was written by hand.
    """  # noqa: D301
    details = {
        "model_name": name, "license": license, "language": language or None,
        "dataset_tags": dataset or None, "tags": tag or None, "finetuned_from": base, "repo": push,
    }  # fmt: skip
    raise typer.Exit(
        run_card(
            run_dir, push=push, private=private, output=output, overwrite=overwrite,
            online=base is not None, with_distance=distance, **details,
        )
    )  # fmt: skip


def run_card(
    run_dir: Path,
    *,
    push: str | None = None,
    private: bool = False,
    output: Path | None = None,
    overwrite: bool = False,
    online: bool = False,
    **details: Any,
) -> int:
    """Write the card and upload it; arguments are the command's options.

    Returns:
        The exit code that the command's help describes.
    """
    try:
        if push is not None:
            from hf_relopt.hf.card_upload import check_repo

            check_repo(push)
        from hf_relopt.hf.model_card import card_of_folder

        written = card_of_folder(run_dir, output, overwrite=overwrite, online=online, **details)
    except (RelOptError, OSError) as error:
        print(f"hf-relopt card: {error}", file=sys.stderr)
        return USAGE
    print(f"wrote {written.path}")
    for note in written.notes:
        print(f"missing: {note}", file=sys.stderr)
    pushed = push is None or _push(run_dir, push, private, written.path)
    return DONE if pushed and not written.notes else PARTIAL


def _push(folder: Path, repo: str, private: bool, card: Path) -> bool:
    from hf_relopt.hf.card_upload import NotPushed
    from hf_relopt.hf.card_upload import push as upload
    from hf_relopt.hf.run_files import holds_weights

    if not holds_weights(folder):
        print(
            f"hf-relopt card: {folder} holds no weights, so nothing was uploaded. Save them there "
            "by trainer.save_model(), or pass the checkpoint's folder.",
            file=sys.stderr,
        )
        return False
    if card.absolute() != (folder / "README.md").absolute():
        print(f"{card} stays here: the hub shows README.md alone.", file=sys.stderr)
    try:
        address = upload(folder, repo, private=private)
    except NotPushed as error:
        later = ["hf-relopt", "card", str(folder), "--push", repo, *["--private"] * private]
        print(
            f"hf-relopt card: not uploaded: {error}. {folder} is ready. Later: {shlex.join(later)}",
            file=sys.stderr,
        )
        return False
    print(f"uploaded to {address}")
    return True
