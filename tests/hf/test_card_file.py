"""Whose README.md it is decides whether it may be replaced."""

from __future__ import annotations

import pytest
from huggingface_hub import ModelCard, ModelCardData

from hf_relopt.hf.card_file import (
    is_ours,
    is_template,
    marked,
    own_card_kept,
    why_kept,
    with_kept_words,
    write_card,
)

HEAD = "---\nlicense: mit\n---\n\n"
OURS = f"{HEAD}{marked('# a model')}"


def test_a_card_of_ours_may_be_replaced_until_somebody_changes_it(tmp_path):
    path = tmp_path / "README.md"
    assert why_kept(path) is None
    write_card(path, OURS)
    assert why_kept(path) is None and [file.name for file in tmp_path.iterdir()] == ["README.md"]
    path.write_text(OURS.replace("# a model", "# my model"))
    assert "changed by hand" in why_kept(path)
    path.write_text(OURS + "\nA line below.\n")
    assert "changed by hand" in why_kept(path)
    path.write_text("# mine\n")
    assert "not written by hf_relopt" in why_kept(path)
    path.write_text("")
    assert why_kept(path) is None


def test_other_spacing_and_line_ends_are_no_change():
    assert is_ours(OURS.replace("\n", "\r\n").replace("\r\n\r\n", "\n\n"))
    assert is_ours(OURS.rstrip("\n")) and not is_ours("# a model")


def test_what_cannot_be_read_is_kept(tmp_path):
    (tmp_path / "README.md").mkdir()
    assert "cannot be read" in why_kept(tmp_path / "README.md")
    (tmp_path / "latin").write_bytes(b"\xff\xfe\xe9")
    assert "cannot be read" in why_kept(tmp_path / "latin")


def test_the_empty_form_of_peft_may_be_replaced_and_a_filled_one_not():
    form = str(ModelCard.from_template(ModelCardData(library_name="peft")))
    form += "\n### Framework versions\n\n- PEFT 0.21.2"
    assert is_template(form)
    assert not is_template(form.replace("[More Information Needed]", "Me", 1))
    assert not is_template("# a model")


def test_a_card_of_ours_survives_what_peft_adds(tmp_path):
    write_card(tmp_path / "README.md", OURS)
    with own_card_kept(tmp_path):
        card = ModelCard.load(tmp_path / "README.md")
        card.data["base_model"], card.data["tags"] = "/home/me/base", ["lora"]
        card.text += "\n### Framework versions\n\n- PEFT 0.21.2"
        card.save(tmp_path / "README.md")
        assert is_ours((tmp_path / "README.md").read_text())
    assert (tmp_path / "README.md").read_text() == OURS


def test_a_card_of_somebody_else_is_left_to_who_writes_it(tmp_path):
    (tmp_path / "README.md").write_text("# mine")
    with own_card_kept(tmp_path):
        (tmp_path / "README.md").write_text("# mine, again")
    assert (tmp_path / "README.md").read_text() == "# mine, again"
    with own_card_kept(tmp_path / "nowhere"):
        pass


def test_a_license_typed_by_hand_stays_and_one_that_is_given_wins(tmp_path):
    path = tmp_path / "README.md"
    write_card(path, OURS)
    assert with_kept_words(ModelCardData(), path).license == "mit"
    assert with_kept_words(ModelCardData(license="other"), path).license == "other"
    assert with_kept_words(ModelCardData(), tmp_path / "none").license is None


@pytest.mark.parametrize("text", ["---\n: [\n---\n", "---\nno end"])
def test_a_damaged_head_takes_nothing_with_it(text, tmp_path):
    (tmp_path / "README.md").write_text(text)
    assert with_kept_words(ModelCardData(), tmp_path / "README.md").license is None
