"""The last lines of a run: results, files, what to try next."""

from __future__ import annotations

from demo_record import comparison
from progress_lines import duration
from run_folder import RunFolder

FILES = (
    ("model", "model.safetensors"),
    ("adapter", "adapter_model.safetensors"),
    ("card", "README.md"),
    ("loss curve", "loss_curve.png"),
    ("history", "trainer_state.json"),
)
SHOWN_LINES = 40
WIDTH = 100
START_OVER = ("start over", "the same command with --overwrite_output_dir")


def print_summary(folder: RunFolder, metric: str, *, again: bool) -> None:
    """Print the summary of a finished run from its record.

    Args:
        folder: of a finished run.
        metric: the evaluation metric to show, as in "eval_perplexity".
        again: whether this start found the run finished and did nothing.
    """
    record = folder.record
    if again:
        print(f"\nThe run in {folder.path} is finished; nothing was changed.")
    name = metric.removeprefix("eval_").replace("_", " ")
    ends = [record[when].get(metric) for when in ("before", "after")]
    measured = [_shown(value) for value in ends if isinstance(value, (int, float))]
    print(
        f"\nDone: {record['steps']:,} step{'s' if record['steps'] != 1 else ''} in "
        f"{duration(record['seconds'])}, "
        f"validation {name} {' -> '.join(measured)}\n"
    )
    for what, file in FILES:
        if (folder.path / file).exists():
            print(f"  {what:<11} {folder.path / file}")
    if record.get("sample"):
        print("\nWhat it writes now:\n")
        lines = str(record["sample"]).splitlines()
        print("\n".join(f"  | {line}".rstrip() for line in lines[:SHOWN_LINES]))
    if lines := comparison(record):
        print("\n" + "\n".join(lines))
    print("\nTry next:")
    for words, command in [*record.get("hints", []), START_OVER]:
        _print_hint(str(words), str(command))


def _print_hint(words: str, command: str) -> None:
    """Print a hint on one line if it is short; a long command gets its own line, easy to copy."""
    line = f"  {words:<22} {command}"
    print(line if len(line) <= WIDTH else f"  {words}:\n    {command}")


def _shown(value: float) -> str:
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.4f}"
