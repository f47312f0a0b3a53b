"""One start of a run: a folder that holds a run already is left, refused or emptied."""

from __future__ import annotations

from pretrain_clm import main
from run_folder import RunFolder

from tests.recipes.recipe_calls import refusal, tiny_pretraining


def test_started_again_when_finished_it_changes_nothing(trained, tiny_text, capsys):
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    main(tiny_pretraining(tiny_text, trained, max_steps=12, eval_steps=6, save_steps=3))
    printed = capsys.readouterr().out
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before
    assert "is finished" in printed and "--overwrite_output_dir" in printed


def test_other_settings_leave_the_run_and_overwriting_starts_over(tiny_text, tmp_path, capsys):
    folder = tmp_path / "run"
    main(tiny_pretraining(tiny_text, folder))
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    message = refusal(main, tiny_pretraining(tiny_text, folder, seed=7), capsys)
    assert "seed was 42, now 7" in message and "--overwrite_output_dir" in message
    # A mistake beside --overwrite_output_dir must not cost the old run, either.
    mistakes = [
        ({"train_file": tmp_path / "missing.txt"}, "no file"),
        ({"resume_from_checkpoint": folder / "checkpoint-2"}, "would delete"),
    ]
    for flags, words in mistakes:
        again = tiny_pretraining(
            **{"text": tiny_text, "output": folder, "overwrite_output_dir": True, **flags}
        )
        assert words in refusal(main, again, capsys)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    main(tiny_pretraining(tiny_text, folder, max_steps=3, overwrite_output_dir=True))
    assert RunFolder(folder).record["steps"] == 3 and RunFolder(folder).finished
