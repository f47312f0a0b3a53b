"""A release comes from a tag that is its version, after the tests; each push builds the site."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

import hf_relopt

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = ROOT / ".github/workflows"


def workflow(name: str) -> dict:
    found = yaml.safe_load((WORKFLOWS / f"{name}.yml").read_text(encoding="utf-8"))
    # YAML 1.1 reads `on` as true.
    return {"on": found.pop(True), **found}


def steps_of(job: dict) -> list[str]:
    return [step.get("run") or step["uses"] for step in job["steps"]]


@pytest.mark.parametrize(
    ("tag", "accepted"),
    [
        (f"v{hf_relopt.__version__}", True),
        (hf_relopt.__version__, False),
        (f"v{hf_relopt.__version__}rc1", False),
        ("v9.9.9", False),
        ("v", False),
    ],
)
def test_the_tag_must_be_the_version(tag, accepted):
    steps = workflow("publish")["jobs"]["version"]["steps"]
    (check,) = (step["run"] for step in steps if "run" in step)
    # As GitHub runs it: bash -e.
    done = subprocess.run(
        ["bash", "-e", "-c", check],
        cwd=ROOT,
        env={**os.environ, "GITHUB_REF_NAME": tag},
        capture_output=True,
        text=True,
    )
    assert (done.returncode == 0) is accepted, done.stderr
    assert accepted or f"tag v{hf_relopt.__version__}, or change the file" in done.stdout


def test_only_a_tag_publishes_and_only_after_the_tests():
    publish, ci = workflow("publish"), workflow("ci")
    assert publish["on"] == {"push": {"tags": ["v*"]}}
    jobs = publish["jobs"]
    assert jobs["ci"]["uses"] == "./.github/workflows/ci.yml" and "workflow_call" in ci["on"]
    assert {"style", "test"} <= set(ci["jobs"])
    needs = {name: job.get("needs") for name, job in jobs.items()}
    assert needs == {"version": None, "ci": "version", "build": "ci", "publish": "build"}
    assert "python -m build" in steps_of(jobs["build"])
    assert any("gh-action-pypi-publish" in step for step in steps_of(jobs["publish"]))
    # A token of this run instead of a password, and only where it is used.
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert publish["permissions"] == ci["permissions"] == {"contents": "read"}


def test_every_push_builds_the_site():
    docs = workflow("docs")
    assert {"push", "pull_request"} <= set(docs["on"])
    build = docs["jobs"]["build"]
    assert "if" not in build and "make docs" in steps_of(build)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (command,) = (line for line in makefile.splitlines() if "mkdocs build" in line)
    assert command.endswith(" build --strict $(ARGS)")
