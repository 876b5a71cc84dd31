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


def is_lfs(path):
    """Whether the hub stores a file by Git LFS, as the real one does large files."""
    return path.endswith(".keras")


class HubHandler(Handler):
    """Handler of the requests that create a repository and add files to it."""

    def do_PUT(self):
        # A file of Git LFS, whose path is its hash.
        content = self.body()
        is_complete = hashlib.sha256(content).hexdigest() == self.path.split("/")[-1]
        self.server.files[self.path] = File(content)
        self.send_response(http.client.OK if is_complete else http.client.BAD_REQUEST)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def body(self):
        self.server.requests.append((self.command, self.path, dict(self.headers)))
        return self.rfile.read(int(self.headers["Content-Length"]))

    def do_POST(self):
        body, path = self.body(), self.path
        if path == "/api/repos/create":
            found = json.loads(body)
            answer = {
                "url": f"{self.server.url}/{found['organization']}/{found['name']}"
            }
        elif path.endswith("/preupload/main"):
            # Other files than those of Git LFS are part of the commit.
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = ["lfs" if is_lfs(path) else "regular" for path in paths]
            answer = {
                "files": [
                    {"path": path, "uploadMode": mode, "shouldIgnore": False}
                    for path, mode in zip(paths, modes, strict=True)
                ]
            }
        elif path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for item in objects:
                upload = {"href": f"{self.server.url}/lfs/{item['oid']}"}
                item["actions"] = {"upload": upload}
            answer = {"objects": objects, "transfer": "basic"}
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
            value = operation["value"]
            if operation["key"] == "file":
                content = base64.b64decode(value["content"])
                digest = hashlib.sha256(content).hexdigest()
                file = File(content, headers={"ETag": f'"{digest}"'})
            elif operation["key"] == "lfsFile":
                stored = f"/lfs/{value['oid']}"
                size = len(self.files[stored].content)
                assert value["size"] == size
                # On another host, as there: the client ignores headers of redirections
                # within one.
                elsewhere = self.url.replace("127.0.0.1", "localhost")
                file = File(b"", headers={"Location": f"{elsewhere}{stored}"})
                file.headers["X-Linked-ETag"] = f'"{value["oid"]}"'
                file.headers["X-Linked-Size"] = str(size)
            else:
                continue
            file.headers["X-Repo-Commit"] = commit
            for revision in ("main", commit):
                self.files[f"/{repository}/resolve/{revision}/{value['path']}"] = file
        return commit


@pytest.fixture
def hub(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("HF_TOKEN", "of-me")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # Git LFS instead of the hub's own protocol, where that is installed.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    with running(Hub) as server:
        set_hub(monkeypatch, server.url)
        yield server


# `huggingface_hub` sends files of Git LFS in a way that its HTTP client warns of.
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_own_checkpoints_are_uploaded_and_downloaded(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pages.run(PAGE)
    assert len(hub.gets("/me/digits/resolve/main/digits.weights.h5")) == 1
    # The large file was sent by itself, and came from where it is stored.
    digest = hashlib.sha256((tmp_path / "digits.keras").read_bytes()).hexdigest()
    stored = f"/lfs/{digest}"
    sent = [path for command, path, _ in hub.requests if command == "PUT"]
    assert sent == [stored]
    assert len(hub.gets(stored)) == 1
    [created] = [headers for _, path, headers in hub.requests if "create" in path]
    assert created["authorization"] == "Bearer of-me"
