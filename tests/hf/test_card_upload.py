"""The folder goes to the hub, or stays ready: a server on this machine stands in for the hub."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from hf_relopt.errors import ConfigError
from hf_relopt.hf.card_upload import LEFT_OUT, NotPushed, check_repo, push
from tests.hf.tiny import passed, python


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does to create a repository and to commit; says no if told to."""

    refuses = False
    calls: list[tuple[str, bytes]]

    def do_POST(self):
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.calls.append((self.path, content))
        if self.server.refuses:
            return self._answer(403, {"error": "no rights"})
        at = f"http://127.0.0.1:{self.server.server_port}"
        if self.path.endswith("/repos/create"):
            return self._answer(200, {"url": f"{at}/user/model", "name": "user/model"})
        if "/preupload/" in self.path:
            plain = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            files = [{"path": f["path"], **plain} for f in json.loads(content)["files"]]
            return self._answer(200, {"files": files})
        commit = f"{at}/user/model/commit/a"
        done = {"success": True, "commitOid": "a" * 40, "commitUrl": commit, "hookOutput": ""}
        return self._answer(200, done)

    def do_GET(self):
        self._answer(200, {"sha": "a" * 40, "id": "user/model", "siblings": []})

    def _answer(self, code, found):
        text = json.dumps(found).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.calls, server.refuses = [], False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


PUSH = """
    import sys
    from pathlib import Path
    from hf_relopt.hf.card_upload import NotPushed, push
    try:
        print("at", push(Path(sys.argv[1]), "user/model", private=False))
    except NotPushed as error:
        print("not pushed:", error)
"""


def pushed(folder, port, token="hf_test"):
    return passed(
        python(
            PUSH, str(folder), HF_HUB_OFFLINE="0", HF_ENDPOINT=f"http://127.0.0.1:{port}",
            HF_TOKEN=token, HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_PROGRESS_BARS="1",
        )
    )  # fmt: skip


def test_what_is_of_the_model_is_uploaded_and_what_is_of_the_machine_is_not(hub, tmp_path):
    for name in ("README.md", "config.json", "relopt_run.json", "optimizer.pt", ".hidden"):
        (tmp_path / name).write_text("x")
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / "a.json").write_text("x")
    out = pushed(tmp_path, hub.server_port)
    assert "user/model" in out and "not pushed" not in out, out
    (commit,) = [content for path, content in hub.calls if "/commit/" in path]
    lines = [json.loads(line) for line in commit.splitlines()]
    names = {line["value"]["path"] for line in lines if line["key"] == "file"}
    assert names == {"README.md", "config.json"}
    assert "checkpoint-*" in LEFT_OUT


def test_the_hub_s_no_and_no_hub_at_all_leave_the_folder(hub, tmp_path):
    (tmp_path / "README.md").write_text("x")
    hub.refuses = True
    assert "not pushed:" in pushed(tmp_path, hub.server_port)
    hub.shutdown()
    hub.server_close()
    assert "not pushed:" in pushed(tmp_path, hub.server_port)
    assert (tmp_path / "README.md").read_text() == "x"


def test_offline_and_without_a_token_it_says_so(tmp_path, monkeypatch):
    with pytest.raises(NotPushed, match="HF_HUB_OFFLINE is set"):
        push(tmp_path, "user/model", private=False)
    from hf_relopt.hf import card_upload

    monkeypatch.setattr(card_upload.constants, "is_offline_mode", lambda: False)
    monkeypatch.setattr(card_upload, "get_token", lambda: None)
    with pytest.raises(NotPushed, match="hf auth login"):
        push(tmp_path, "user/model", private=False)


@pytest.mark.parametrize("name", ["a b", "a/b/c", "", "-a-"])
def test_a_name_that_the_hub_would_not_take_is_refused(name):
    with pytest.raises(ConfigError, match="USER/MODEL"):
        check_repo(name)
    check_repo("user/model")
