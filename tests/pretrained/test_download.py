"""Downloads of weight files from a server that fails in many ways."""

import base64
import dataclasses
import hashlib
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
from hub_address import set_hub
from internals import expected
from server import File, running

from keras_nfnets.pretrained import download, hub_cache

CONTENT = bytes(range(256)) * 12_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()
SENT_MD5 = "md5=" + base64.b64encode(hashlib.md5(CONTENT).digest()).decode()
CHUNK = 1 << 16
COMMIT, LATER = "c" * 40, "d" * 40
RESOLVE = "/timm/nfnet/resolve/main/model.safetensors"
PLAIN = "/dm-nfnets/F0.npz"


def on_hub(content, digest=SHA256, commit=COMMIT, **options):
    headers = {"ETag": f'"{digest}"', "X-Repo-Commit": commit}
    return File(content, headers=headers, **options)


def files_in(folder):
    """Return `{path: content or link target}` of all files except locks."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        for path in folder.rglob("*")
        if (path.is_symlink() or path.is_file()) and path.suffix != ".lock"
    }


@dataclasses.dataclass
class Remote:
    """One of the two download functions, its file on the server, and its cache."""

    fetch: callable
    path: str
    file: File
    cache: pathlib.Path
    is_final: callable


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with running() as server:
        yield server


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    set_hub(monkeypatch, server.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
    (cache / "models--other--one" / "blobs").mkdir(parents=True)
    (cache / "models--other--one" / "blobs" / "aa").write_bytes(b"of somebody else")
    server.files[RESOLVE] = on_hub(CONTENT)
    server.files[RESOLVE.replace("main", COMMIT)] = server.files[RESOLVE]
    return Remote(
        lambda: download.hub_file("timm/nfnet", "model.safetensors"),
        RESOLVE.replace("main", COMMIT),
        server.files[RESOLVE],
        cache,
        lambda name: name.startswith("models--timm"),
    )


@pytest.fixture
def url(server, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    (tmp_path / "keras").mkdir()
    (tmp_path / "keras" / "keras.json").write_text("{}")
    server.files[PLAIN] = File(
        CONTENT, headers={"x-goog-hash": f"crc32c=AAAA==,{SENT_MD5}"}
    )
    return Remote(
        lambda **options: download.url_file(server.url + PLAIN, **options),
        PLAIN,
        server.files[PLAIN],
        tmp_path / "keras",
        lambda name: name.endswith(".npz"),
    )


@pytest.fixture(params=["hub", "url"])
def remote(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def impatient(monkeypatch):
    """Remove the pauses between retries."""
    monkeypatch.setattr(time, "sleep", lambda _: None)


def assert_refused(remote, error, message, before=None):
    before = files_in(remote.cache) if before is None else before
    with pytest.raises(error, match=message) as raised:
        remote.fetch()
    after = files_in(remote.cache)
    partial = [name for name in after if name.endswith(".partial")]
    assert {name: after[name] for name in after if name not in partial} == before
    assert not any(path.name.startswith(".keras") for path in remote.cache.iterdir())
    return str(raised.value), partial


def test_a_file_is_downloaded_once(remote, server):
    path = remote.fetch()
    assert path.read_bytes() == CONTENT
    assert isinstance(path, pathlib.Path)
    assert server.gets(remote.path) == [None]
    asked = len(server.requests)
    # A cached file needs no writing either, as the folder may be read-only.
    for lock in remote.cache.rglob("*.lock"):
        lock.unlink()
    assert remote.fetch() == path
    assert len(server.requests) == asked
    assert not [*remote.cache.rglob("*.lock")]


def test_nothing_has_the_final_name_before_it_is_checked(remote):
    seen = []

    def look():
        time.sleep(0.3)
        seen.append(files_in(remote.cache).keys())

    remote.file.before_last_byte = look
    before = files_in(remote.cache).keys()
    remote.fetch()
    [names] = seen
    assert len(names) > len(before)
    assert not any(remote.is_final(name) for name in names)


def test_a_truncated_download(remote, impatient):
    # The server announces more bytes than it ever sends.
    remote.file.cuts = itertools.chain([1_000_000], itertools.repeat(0))
    _, partial = assert_refused(
        remote, ConnectionError, "manually and pass .*Received: "
    )
    # A partial file stays for the next call only if the download can be resumed.
    assert len(partial) == (remote.path == PLAIN)


@pytest.mark.parametrize("at", [0, 1_000_000])
def test_a_wrong_checksum(remote, at):
    remote.file.content = CONTENT[:at] + b"!" + CONTENT[at + 1 :]
    message = "checksum .* is wrong; it was deleted. .*Received: [0-9a-f]{32,64}$"
    _, partial = assert_refused(remote, ValueError, message)
    assert not partial


def test_a_server_that_disconnects_halfway(remote, server, impatient):
    remote.file.cuts = iter([1_000_000, 500_000])
    assert remote.fetch().read_bytes() == CONTENT
    # The hub's client writes complete chunks and loses the last one.
    first, second, third = server.gets(remote.path)
    assert first is None
    for asked, come in ((second, 1_000_000), (third, 1_500_000)):
        at = int(asked.removeprefix("bytes=").removesuffix("-"))
        assert come - 2 * CHUNK < at <= come


@pytest.mark.parametrize("status", [404, 401, 503])
def test_no_such_file(remote, server, status):
    server.files[RESOLVE] = server.files[PLAIN] = status
    message, partial = assert_refused(
        remote, ConnectionError, f"Received: HTTP {status}"
    )
    assert server.url in message
    assert not partial


def test_a_full_disk(remote):
    resource = pytest.importorskip("resource")
    before = files_in(remote.cache)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Writing beyond this limit fails as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
    try:
        with pytest.raises(OSError, match=f"{len(CONTENT)} bytes.*{remote.cache}") as e:
            remote.fetch()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert e.value.errno
    assert not isinstance(e.value, ConnectionError)
    assert files_in(remote.cache) == before
    assert remote.fetch().read_bytes() == CONTENT


@pytest.mark.parametrize("answers", ["refuses", "is silent"])
def test_a_host_that_does_not_answer(remote, server, answers, monkeypatch):
    monkeypatch.setattr(download, "_RESPONSE_TIMEOUT", 1)
    server.shutdown()
    if answers == "refuses":
        server.server_close()
    start = time.monotonic()
    message, _ = assert_refused(remote, ConnectionError, "could not be downloaded. ")
    assert time.monotonic() - start < 10
    assert ("no answer" in message) == (answers == "is silent")


def test_the_hub_client_finds_our_downloads(hub, server):
    from huggingface_hub import hf_hub_download

    path = hub.fetch()
    assert path.is_symlink()
    repo = hub.cache / "models--timm--nfnet"
    assert path.resolve() == repo / "blobs" / SHA256
    assert files_in(repo).keys() == {
        f"blobs/{SHA256}",
        f"snapshots/{COMMIT}/model.safetensors",
        "refs/main",
    }
    asked = len(server.gets(hub.path))
    for options in ({}, {"local_files_only": True}, {"revision": COMMIT}):
        again = hf_hub_download("timm/nfnet", "model.safetensors", **options)
        assert pathlib.Path(again) == path
    assert len(server.gets(hub.path)) == asked


def test_a_large_file_is_redirected_to_another_host(hub, server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.file.headers = {
        "X-Repo-Commit": COMMIT,
        "X-Linked-Etag": f'"{SHA256}"',
        "X-Linked-Size": str(len(CONTENT)),
        # Another name for the same server, as the token must not be sent to another host.
        "Location": server.url.replace("127.0.0.1", "localhost") + "/large",
    }
    server.files["/large"] = File(CONTENT, headers={"ETag": '"of the other host"'})
    assert hub.fetch().read_bytes() == CONTENT
    assert server.gets("/large") == [None]
    assert "Authorization" not in server.requests[-1][2]


def test_a_small_file_has_a_git_hash(hub, server):
    content = b'{"architecture": "nfnet"}'
    name = hashlib.sha1(b"blob 25\0" + content).hexdigest()
    for revision in ("v1", COMMIT):
        path = f"/timm/nfnet/resolve/{revision}/sub/config.json"
        server.files[path] = on_hub(content, digest=name)
    path = download.hub_file("timm/nfnet", "sub/config.json", revision="v1")
    assert path.read_bytes() == content
    assert path.resolve().name == name
    server.files.clear()
    assert download.hub_file("timm/nfnet", "sub/config.json", "v1") == path
    assert download.hub_file("timm/nfnet", "sub/config.json", COMMIT) == path


def test_a_corrupt_file_in_the_cache_is_downloaded_again(hub):
    path = hub.fetch()
    before = files_in(hub.cache)
    path.resolve().write_bytes(CONTENT[:-1])
    with pytest.warns(UserWarning, match="is corrupt. It was removed"):
        assert hub.fetch() == path
    assert files_in(hub.cache) == before


def test_a_corrupt_file_is_not_used_if_the_server_is_down(hub, server):
    before = files_in(hub.cache)
    path = hub.fetch()
    path.resolve().write_bytes(CONTENT[:-1])
    server.files.clear()
    with (
        pytest.warns(UserWarning, match="is corrupt. It was removed"),
        pytest.raises(ConnectionError, match="HTTP 404"),
    ):
        hub.fetch()
    assert files_in(hub.cache).keys() - before == {"models--timm--nfnet/refs/main"}


@pytest.mark.parametrize("corrupt", [False, True])
def test_a_later_commit_with_the_same_file(hub, server, corrupt):
    first = hub.fetch()
    if corrupt:
        first.resolve().write_bytes(b"no")
    (hub.cache / "models--timm--nfnet" / "refs" / "main").unlink()
    server.files[RESOLVE] = on_hub(CONTENT, commit=LATER)
    server.files[RESOLVE.replace("main", LATER)] = server.files[RESOLVE]
    second = hub.fetch()
    assert second != first
    assert second.resolve() == first.resolve()
    assert second.read_bytes() == CONTENT
    assert len(server.gets(RESOLVE.replace("main", LATER))) == corrupt


def test_a_system_without_symlinks(hub, server, monkeypatch):
    from huggingface_hub import file_download

    monkeypatch.setattr(file_download, "are_symlinks_supported", lambda *_: False)
    monkeypatch.setattr(os, "symlink", None)
    path = hub.fetch()
    assert path.read_bytes() == CONTENT
    assert path.is_file()
    assert not path.is_symlink()
    assert not (hub.cache / "models--timm--nfnet" / "blobs").exists()
    server.files.clear()
    assert hub.fetch() == path
    # The name is not a digest, in spite of its length.
    path = path.rename(path.with_name("a" * 40))
    with pytest.warns(UserWarning, match="is used unchecked: .*HTTP 404"):
        assert download.hub_file("timm/nfnet", path.name) == path


@pytest.mark.parametrize(
    "headers",
    [{}, {"ETag": '"1-5f"', "X-Repo-Commit": COMMIT}, {"ETag": f'"{SHA256}"'}],
)
def test_a_server_that_is_not_a_hub(hub, headers):
    hub.file.headers = headers
    assert_refused(hub, ConnectionError, "HF_ENDPOINT.*not come from a hub: ETag ")


def test_a_malformed_repository_name(hub, server):
    with pytest.raises(ValueError, match="a/b/c"):
        download.hub_file("a/b/c", "model.safetensors")
    assert not server.requests


@pytest.mark.parametrize("md5", [MD5, MD5.upper()])
def test_a_given_checksum(url, md5):
    # The given checksum takes precedence over that of the server.
    url.file.headers = {"x-goog-hash": f"md5={'A' * 22}=="}
    assert url.fetch(md5=md5).read_bytes() == CONTENT


def test_a_given_checksum_that_is_wrong(url, server):
    before = files_in(url.cache)
    with pytest.raises(ValueError, match=f"Expected: 0{{32}}. Received: {MD5}"):
        url.fetch(md5="0" * 32)
    assert files_in(url.cache) == before
    # Only one try, as the server has no other content.
    assert server.gets(PLAIN) == [None]


def test_a_file_in_the_cache_with_another_checksum(url, server):
    path = url.fetch()
    path.write_bytes(b"old")
    assert url.fetch().read_bytes() == b"old"
    with pytest.warns(UserWarning, match=f"is not {MD5}. It was moved to .*wrong"):
        assert url.fetch(md5=MD5) == path
    assert path.read_bytes() == CONTENT
    assert path.with_name("F0.npz.wrong").read_bytes() == b"old"


@pytest.mark.parametrize(
    "hashes",
    [
        f"crc32c=AAAA==,{SENT_MD5}",
        ["crc32c=AAAA==", SENT_MD5],
        [SENT_MD5, "crc32c=AAAA=="],
        f"{SENT_MD5}, crc32c=AAAA==",
    ],
)
def test_the_checksum_of_google_cloud_storage(url, hashes):
    url.file.headers = {"x-goog-hash": hashes}
    assert url.fetch().read_bytes() == CONTENT
    url.fetch().unlink()
    url.file.content = CONTENT[::-1]
    assert_refused(url, ValueError, "md5 checksum .* is wrong")


def test_an_interrupted_download_resumes(url, server, impatient):
    url.file.cuts = itertools.chain([2_000_000], itertools.repeat(0))
    _, [partial] = assert_refused(url, ConnectionError, "only 2,000,000 of 3,072,000")
    assert CONTENT.startswith((url.cache / partial).read_bytes())
    url.file.cuts = iter(())
    server.requests.clear()
    before = files_in(url.cache).keys() - {partial}
    path = url.fetch()
    assert path.read_bytes() == CONTENT
    assert server.gets(PLAIN) == ["bytes=2000000-"]
    assert files_in(url.cache).keys() - before == {str(path.relative_to(url.cache))}


@pytest.mark.parametrize("part", [b"", b"old" * 99, CONTENT, b"old" * 2_000_000])
@pytest.mark.parametrize("knows_range", [True, False])
def test_a_file_that_changed_since_its_first_part_was_downloaded(
    url, server, part, knows_range
):
    path = url.fetch()
    path.rename(path.with_name("F0.npz.partial")).write_bytes(part)
    url.file.knows_range = knows_range
    assert url.fetch() == path
    assert path.read_bytes() == CONTENT
    assert not path.with_name("F0.npz.partial").exists()


def test_a_download_resumes_only_if_there_is_a_checksum(url, server, impatient):
    url.file.headers = {}
    url.file.cuts = itertools.chain([2_000_000], itertools.repeat(0))
    assert_refused(url, ConnectionError, "only 2,000,000")
    url.file.content, url.file.cuts = CONTENT[::-1], iter(())
    server.requests.clear()
    assert url.fetch().read_bytes() == CONTENT[::-1]
    assert server.gets(PLAIN) == [None]


@pytest.mark.parametrize(
    "options",
    [
        {"cuts": [1_000_000, 0, 0, 500_000, 0, 0, 1_000_000]},
        {"cuts": [1_000_000, 500_000], "resets": True},
        {"cuts": [1_000_000, 500_000], "knows_range": False},
        {"cuts": [1_000_000, 0, 2_000_000], "knows_range": False},
    ],
)
def test_a_server_that_disconnects_repeatedly(url, server, impatient, options):
    file = dataclasses.replace(url.file, **{**options, "cuts": iter(options["cuts"])})
    server.files[PLAIN] = file
    assert url.fetch().read_bytes() == CONTENT


def test_a_server_that_restarts_forever(url, server, impatient):
    url.file.knows_range = False
    url.file.cuts = itertools.repeat(1_000_000)
    assert_refused(url, ConnectionError, "only 1,000,000 of 3,072,000 bytes")
    assert len(server.gets(PLAIN)) == 4


def test_no_user_data_is_sent_to_other_hosts(url, server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    url.fetch()
    for _, _, headers in server.requests:
        assert headers.keys() <= {
            "Host",
            "Connection",
            "Accept-Encoding",
            "User-Agent",
        }
        assert headers["User-Agent"] == "keras_nfnets"


def test_files_of_one_name_from_two_hosts_are_kept_apart(url, server):
    path = url.fetch()
    there = f"/more{PLAIN}?version=1"
    server.files[there] = File(b"other")
    other = download.url_file(server.url + there)
    assert (other.name, path.name) == ("F0.npz", "F0.npz")
    assert (other.read_bytes(), path.read_bytes()) == (b"other", CONTENT)


def test_a_file_of_unknown_length(url):
    url.file.headers["Transfer-Encoding"] = "chunked"
    url.file.content = b""
    assert_refused(url, ConnectionError, "Received: no Content-Length")


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "file:///etc/passwd",
        "ftp://host/file",
        "https:///file",
        "https://host",
        "https://host/",
        "https://host/a/..",
        "https://host/%2e%2e",
        None,
    ],
)
def test_malformed_urls_are_errors(url, wrong):
    with pytest.raises(ValueError, match="https://host/file. Received: url="):
        download.url_file(wrong)


@pytest.mark.parametrize("wrong", ["1234567", "0" * 33, "md5:12345678", "x" * 32, 7])
def test_malformed_checksums_are_errors(url, server, wrong):
    with pytest.raises(ValueError, match="32 hexadecimal digits. Received: md5="):
        url.fetch(md5=wrong)
    assert not server.requests


@pytest.mark.parametrize(
    "name", ["../../../x.npz", "%2e%2e%2f%2e%2e%2fx.npz", "a:b\\c*.npz", "F0+ (1).npz"]
)
def test_no_url_leads_out_of_the_folder(url, server, name):
    place = download._path_in_keras_home(f"https://user:pw@host:80/../{name}")
    folder = url.cache / "models" / "keras_nfnets"
    assert place.parent.parent == folder
    assert not set(place.name) & set('/\\:*?"<>|')
    assert place.name not in (".", "..")
    assert "pw" not in str(place)


@pytest.mark.parametrize("links", [True, False])
def test_the_hub_client_writes_the_layout_that_we_write(hub, monkeypatch, links):
    import huggingface_hub
    from huggingface_hub import constants, hf_hub_download

    if not links and not hasattr(constants, "HF_HUB_DISABLE_SYMLINKS"):
        pytest.skip("version 0 always makes links where it can")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", not links, raising=False)
    with expected(hub_cache.repository, huggingface_hub):
        pointer = pathlib.Path(hf_hub_download("timm/nfnet", "model.safetensors"))
        cache = hub_cache.folder()
        assert cache == hub.cache
        repo = hub_cache.repository(cache, "timm/nfnet")
        assert pointer == hub_cache.snapshot(repo, COMMIT, "model.safetensors")
        assert hub_cache.reference(repo, "main").read_text() == COMMIT
        assert hub_cache.lock_file(cache, repo).parent.is_dir()
        blob = hub_cache.blob(repo, SHA256)
        assert hub_cache.has_links(cache) == links == blob.exists()
        assert (hub_cache.blob_of(repo, pointer) is not None) == links
        if links:
            assert hub_cache.blob_of(repo, pointer).samefile(blob)
            assert hub_cache.algorithm(blob.name) == "sha256"


def test_a_lock_keeps_others_out(tmp_path):
    import filelock
    import huggingface_hub

    with expected(hub_cache.locked, huggingface_hub):
        path = tmp_path / "folder" / "a.lock"
        other = filelock.FileLock(path)
        with hub_cache.locked(path), pytest.raises(filelock.Timeout):
            other.acquire(timeout=0)
        with other.acquire(timeout=0):
            pass


# Child processes read the environment as a user sets it. They load the module in packages
# without an __init__, as Keras takes seconds to import.
PACKAGES = {
    "keras_nfnets": str(pathlib.Path(download.__file__).parents[1]),
    "keras_nfnets.pretrained": str(pathlib.Path(download.__file__).parent),
}
CHILD = f"""
import importlib, signal, sys, types
# Processes of a shell's background ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
for name, path in {PACKAGES}.items():
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
module = vars(importlib.import_module("keras_nfnets.pretrained.download"))
assert "keras" not in sys.modules
print("ready", flush=True)
for call in sys.argv[1:]:
    print(eval(call, module), flush=True)
"""
HUB_CALL = "hub_file('timm/nfnet', 'model.safetensors')"


@pytest.fixture
def start(server, hub, url):
    """Function that starts a process that evaluates calls and prints their results."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": server.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_CACHE": str(hub.cache),
        "KERAS_HOME": str(url.cache),
    }
    processes = []

    def start(*calls, **more):
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, *calls],
            env={**environment, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_two_processes_at_once_download_once(server, hub, url, start):
    url_call = f"url_file({server.url + PLAIN!r})"
    calls = [(HUB_CALL, url_call), (HUB_CALL, url_call)]
    both_wait = threading.Event()
    hub.file.before_last_byte = lambda: both_wait.wait(20)
    children = [start(*each) for each in calls]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    time.sleep(1)
    both_wait.set()
    outputs = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    for path in outputs[0][0].splitlines():
        assert pathlib.Path(path).read_bytes() == CONTENT
    assert server.gets(hub.path) == [None]
    assert server.gets(PLAIN) == [None]


def test_ctrl_c_leaves_nothing_under_the_final_name(server, remote, start):
    call = HUB_CALL if remote.path != PLAIN else f"url_file({server.url + PLAIN!r})"
    before = files_in(remote.cache)
    at_the_end, stopped = threading.Event(), threading.Event()

    def hold():
        at_the_end.set()
        stopped.wait(20)

    remote.file.before_last_byte = hold
    child = start(call)
    assert at_the_end.wait(20)
    time.sleep(0.5)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=20)
    stopped.set()
    assert child.returncode != 0
    assert "KeyboardInterrupt" in errors
    after = files_in(remote.cache)
    assert not any(remote.is_final(name) for name in after.keys() - before.keys())
    assert len(after) == len(before) + (remote.path == PLAIN)
    remote.file.before_last_byte = lambda: None
    server.requests.clear()
    assert remote.fetch().read_bytes() == CONTENT
    assert (server.gets(remote.path) != [None]) == (remote.path == PLAIN)


def test_offline(server, hub, start):
    failing = start(HUB_CALL, HF_HUB_OFFLINE="1")
    _, errors = failing.communicate(timeout=20)
    assert failing.returncode != 0
    for part in (
        f"ConnectionError: {server.url}{RESOLVE} is not in {hub.cache}",
        "offline mode is enabled",
        "unset HF_HUB_OFFLINE",
    ):
        assert part in errors
    assert not server.requests
    path = hub.fetch()
    server.requests.clear()
    good = start(HUB_CALL, HF_HUB_OFFLINE="1")
    output, errors = good.communicate(timeout=20)
    assert output == f"ready\n{path}\n", errors
    assert not server.requests
