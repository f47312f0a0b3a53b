"""The wheel that is built holds what it must, and works where nothing else of ours is."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.docs.pages import links

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built offline with the build tools at hand."""
    for tool in ("build", "hatchling", "hatch_fancy_pypi_readme"):
        pytest.importorskip(tool, reason=f"pip install -e .[dev] brings {tool}")
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel, bare_python):
    """A new environment with the wheel and the third parties; gives its Python."""
    command = [sys.executable, "-m", "pip", "--python", bare_python, "install", "--no-deps"]
    done = subprocess.run(
        [*command, "--no-index", "--disable-pip-version-check", "--ignore-installed", wheel],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    yield bare_python
    # bare_python belongs to the whole run: others rely on hf_relopt being absent.
    subprocess.run([*command[:5], "uninstall", "-y", "hf_relopt"], check=True, capture_output=True)


def _run(python: Path, cwd: Path, *command: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True)


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {name for name in names if name.startswith("hf_relopt/")}
    (metadata,) = {name.partition("/")[0] for name in names - package}
    assert metadata.endswith(".dist-info")
    assert {"hf_relopt/py.typed", "hf_relopt/autoload/sitecustomize.py"} <= package
    sources = {
        str(path.relative_to(ROOT).as_posix())
        for path in (ROOT / "hf_relopt").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    recipes = {
        f"hf_relopt/{path.relative_to(ROOT).as_posix()}"
        for path in (ROOT / "recipes").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {Path(name).suffix for name in recipes} == {".py", ".yaml", ".sh", ".md"}
    assert package == sources | recipes
    assert f"{metadata}/licenses/LICENSE" in names
    assert not [name for name in names if "test" in name.split("/")]


def test_wheel_says_what_it_is(wheel):
    archive = zipfile.ZipFile(wheel)
    (metadata,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
    message = email.message_from_bytes(archive.read(metadata))
    assert message["Name"] == "hf_relopt"
    assert message["License-Expression"] == "Apache-2.0"
    assert message["Requires-Python"] == ">=3.10"
    extras = set(message.get_all("Provides-Extra"))
    assert extras == {"bench", "deepspeed", "dev", "docs", "gan", "peft", "tracking", "trl"}
    needs = [line for line in message.get_all("Requires-Dist") if "extra ==" not in line]
    assert {"torch>=2.6", "transformers>=5.4", "accelerate>=1.11"} <= set(needs)
    assert len(needs) == 10
    (licence,) = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    assert b"Apache License" in archive.read(licence)
    (scripts,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    assert b"hf-relopt = hf_relopt.cli.main:main" in archive.read(scripts)


def test_the_page_on_pypi_links_to_the_repository(wheel):
    archive = zipfile.ZipFile(wheel)
    (metadata,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
    message = email.message_from_bytes(archive.read(metadata))
    urls = dict(line.split(", ") for line in message.get_all("Project-URL"))
    assert set(urls) == {"Homepage", "Documentation", "Changelog", "Issues"}
    assert message["Description-Content-Type"] == "text/markdown"
    home, version = urls["Homepage"], message["Version"]
    targets = {target for _, target in links(message.get_payload(decode=True).decode())}
    for _, target in links((ROOT / "README.md").read_text(encoding="utf-8")):
        inside = urlsplit(target).scheme == "" and not target.startswith("#")
        on_github = {f"{home}/{kind}/v{version}/{target}" for kind in ("blob", "raw")}
        assert targets & (on_github if inside else {target}), target


def test_installed_alone_it_trains(installed, tmp_path):
    code = f"""
        import pathlib, torch
        import hf_relopt
        from hf_relopt import Fromage, Madam
        where = pathlib.Path(hf_relopt.__file__).resolve()
        assert pathlib.Path({str(installed.parents[1])!r}).resolve() in where.parents, where
        for optimizer_class in (Fromage, Madam):
            model = torch.nn.Linear(8, 8)
            optimizer = optimizer_class(model.parameters(), lr=0.1)
            losses = []
            for _ in range(20):
                loss = (model(torch.eye(8)) - 2 * torch.eye(8)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            assert losses[-1] < losses[0], losses
        print("trained")
    """
    done = _run(installed, tmp_path, str(installed), "-W", "error", "-c", textwrap.dedent(code))
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr


def test_console_script_works(installed, tmp_path):
    script = str(installed.parent / "hf-relopt")
    done = _run(installed, tmp_path, script, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "run" in done.stdout
    version = _run(installed, tmp_path, script, "--version")
    assert version.stdout == "hf_relopt 0.1.0\n"
    code = "import transformers.training_args as t; print(t.OptimizerNames('fromage').value)"
    done = _run(installed, tmp_path, script, "run", str(installed), "-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "fromage\n", "")


def test_recipes_are_found_where_they_were_installed(installed, tmp_path):
    script = str(installed.parent / "hf-relopt")
    listed = _run(installed, tmp_path, script, "recipes", "list")
    assert (listed.returncode, listed.stderr) == (0, "")
    folder = Path(listed.stdout.splitlines()[-1].removeprefix("The files: "))
    assert installed.parents[1].resolve() in folder.parents
    shown = _run(installed, tmp_path, script, "recipes", "show", "pretrain-gpt2-124m/madam")
    assert shown.stdout == (ROOT / "recipes/pretrain-gpt2-124m/madam.yaml").read_text()
    # The script starts from there as well; what it does is tested elsewhere.
    command = [str(installed), str(folder / "pretrain_clm.py"), "--train_file", "missing.txt"]
    done = _run(installed, tmp_path, *command)
    assert done.returncode == 2
    assert "pretrain_clm.py: error: " in done.stderr and "missing.txt" in done.stderr
