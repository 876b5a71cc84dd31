"""Upload of checkpoints to a hub, and their download, by the code of the documentation."""

import base64
import hashlib
import http.client
import json
import pathlib
import re

import pages
import pytest
from hub_address import set_hub
from server import File, Handler, Server, running

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "tools" / "sharing.md"


class HubHandler(Handler):
    """Handler of the requests that create a repository and add files to it."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path
        self.server.requests.append((self.command, path, dict(self.headers)))
        if path == "/api/repos/create":
            found = json.loads(body)
            answer = {
                "url": f"{self.server.url}/{found['organization']}/{found['name']}"
            }
        elif path.endswith("/preupload/main"):
            # Small files, which are part of the commit.
            files = json.loads(body)["files"]
            answer = {
                "files": [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in files
                ]
            }
        else:
            [repository] = re.fullmatch(r"/api/models/(.*)/commit/main", path).groups()
            commit = self.server.commit(repository, body)
            url = f"{self.server.url}/{repository}/commit/{commit}"
            answer = {"commitUrl": url, "commitOid": commit}
        content = json.dumps(answer).encode()
        self.send_response(http.client.OK)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class Hub(Server):
    """Server that keeps what is uploaded, as the Hugging Face Hub does."""

    def __init__(self):
        super().__init__()
        self.RequestHandlerClass = HubHandler

    def commit(self, repository, body):
        """Add the files of a commit to a repository, and return its hash."""
        commit = hashlib.sha1(body).hexdigest()
        for line in body.splitlines():
            operation = json.loads(line)
            if operation["key"] == "file":
                content = base64.b64decode(operation["value"]["content"])
                digest = hashlib.sha256(content).hexdigest()
                headers = {"ETag": f'"{digest}"', "X-Repo-Commit": commit}
                for revision in ("main", commit):
                    name = operation["value"]["path"]
                    path = f"/{repository}/resolve/{revision}/{name}"
                    self.files[path] = File(content, headers=headers)
        return commit


@pytest.fixture
def hub(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", "of-me")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with running(Hub) as server:
        set_hub(monkeypatch, server.url)
        yield server


def test_own_checkpoints_are_uploaded_and_downloaded(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pages.run(PAGE)
    for name in ("digits.keras", "digits.weights.h5"):
        assert len(hub.gets(f"/me/digits/resolve/main/{name}")) == 1
    [created] = [headers for _, path, headers in hub.requests if "create" in path]
    assert created["authorization"] == "Bearer of-me"
