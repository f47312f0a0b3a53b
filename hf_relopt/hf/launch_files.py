"""Find the file of a launch configuration by its name, without heavy imports."""

from __future__ import annotations

from pathlib import Path

from hf_relopt.errors import ConfigError
from hf_relopt.shipped import accelerate_files


def find_launch_file(name_or_file: str) -> Path:
    """The file that was given, or that of a shipped configuration.

    Args:
        name_or_file: the value of --accelerate.

    Raises:
        ConfigError: neither a file nor a name.
    """
    path = Path(name_or_file)
    try:
        if path.is_file():
            return path
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"--accelerate is {name_or_file[:80]!r}: {words}.") from None
    files = accelerate_files()
    if name_or_file in files:  # also where a folder of this name lies about
        return files[name_or_file]
    if path.exists():
        there = "is a directory" if path.is_dir() else "is not a regular file"
        raise ConfigError(f"--accelerate is {name_or_file!r}, which {there}. Name a file.")
    shipped = f", or one of these names: {', '.join(files)}" if files else ""
    raise ConfigError(
        f"--accelerate is {name_or_file!r}: there is no such file, and hf_relopt ships no "
        "configuration of this name. It takes a file that `accelerate config --config_file FILE` "
        f"wrote, or DeepSpeed's own JSON{shipped}."
    )
