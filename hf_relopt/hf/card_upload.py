"""Put the folder of a run on the hub, with its card; or leave it ready and say how."""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from hf_relopt.errors import ConfigError, RelOptError, one_line

# What resumes a run, what is prepared for it, and what names places of this machine.
LEFT_OUT = ("checkpoint-*", "data/*", "runs/*", "_*", ".*", "*.tmp", "training_args.bin",
            "optimizer*", "scheduler.pt", "rng_state*", "relopt_run.json", "run.json",
            "trainer_state.json", "telemetry.jsonl")  # fmt: skip


class NotPushed(RelOptError):
    """The hub did not take a folder; it is ready for another try."""


def check_repo(name: str) -> None:
    """Refuse a name that the hub would not take.

    Raises:
        ConfigError: as above.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(
            f"--push is {name!r}, which is no name of a model on the hub: {one_line(error)}. Write "
            "USER/MODEL."
        ) from None


def push(folder: Path, repo: str, *, private: bool) -> str:
    """Upload a folder.

    Args:
        folder: with a card in it.
        repo: USER/MODEL; made if it is not there.
        private: whether a new one is for its owner alone.

    Returns:
        Its address.

    Raises:
        NotPushed: no network, no token, or the hub said no.
    """
    if constants.is_offline_mode():
        raise NotPushed("HF_HUB_OFFLINE is set")
    if get_token() is None:
        raise NotPushed("there is no token of the hub on this machine; `hf auth login` stores one")
    api = HfApi()
    try:
        made = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=os.fspath(folder),
            ignore_patterns=list(LEFT_OUT),
            commit_message="Trained model with its card",
        )
    # The client lets its HTTP library's own errors through, which are OSErrors or not.
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise NotPushed(one_line(error)) from error
    except Exception as error:
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3")):
            raise
        raise NotPushed(f"the hub cannot be reached: {one_line(error)}") from error
    return str(made)
