"""Write the source code of Python packages as two texts, to train on and to measure on.

Every twentieth file, in the order of their names, goes to the second. Without --package the
standard library and torch, about 80 MB: enough for 2,000 steps of `quality.py --task gpt2` that see
hardly a line twice.

    python benchmarks/python_text.py --out texts
    python benchmarks/python_text.py --out texts_12mb --limit 12000000
"""

from __future__ import annotations

import argparse
import importlib.util
import sysconfig
from collections.abc import Iterator
from pathlib import Path

STDLIB = "stdlib"
HELD_OUT = 20


def main() -> None:
    """Read the command line, write train.txt and valid.txt."""
    args = _arguments().parse_args()
    texts: list[list[str]] = [[], []]
    for package in args.package or [STDLIB, "torch"]:
        for number, text in enumerate(sources(folder(package)), start=1):
            texts[number % HELD_OUT == 0].append(text)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, parts in zip(("train.txt", "valid.txt"), texts, strict=True):
        (args.out / name).write_text("".join(parts)[: args.limit], encoding="utf-8")
        print(f"{name}: {len(parts):,} files, {sum(map(len, parts)):,} characters")


def folder(package: str) -> Path:
    """Where a package's files lie.

    Raises:
        SystemExit: there is no such package.
    """
    if package == STDLIB:
        return Path(sysconfig.get_paths()["stdlib"])
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"--package {package}: no such package is installed; install it first")
    return Path(spec.submodule_search_locations[0])


def sources(root: Path) -> Iterator[str]:
    """The modules under `root`, in the order of their names; not what is installed beside them."""
    for path in sorted(root.rglob("*.py")):
        if {"site-packages", "dist-packages"} & set(path.relative_to(root).parts):
            continue
        try:
            yield path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # some tests of the standard library are in other encodings on purpose


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--package",
        action="append",
        help=f"an installed package or '{STDLIB}'; may be given several times "
        f"(default: {STDLIB} and torch)",
    )
    parser.add_argument("--limit", type=int, help="characters of each text at most (default: all)")
    parser.add_argument(
        "--out", type=Path, default=Path("texts"), help="folder to write (default: texts)"
    )
    return parser


if __name__ == "__main__":
    main()
