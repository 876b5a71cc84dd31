"""Servers that never stop, never begin, or send the parts of two files."""

import contextlib
import hashlib
import os
import shutil
import time

import memory
import pytest
from fuzz import servers
from hub_address import set_hub

from keras_nfnets.pretrained import download, hub_cache
from keras_nfnets.printing import without_secrets

FIRST, SECOND = b"1" * 100_000, b"2" * 100_000
COMMIT = "c" * 40


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Folders of downloads, and short limits."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "_TIMEOUT", 1)
    monkeypatch.setattr(download, "_RESPONSE_TIMEOUT", 1)
    monkeypatch.setattr(download, "_PERIOD", 0.5)
    sleep = time.sleep
    monkeypatch.setattr(download.time, "sleep", lambda seconds: sleep(seconds / 50))


def fetch_from(answer, **options):
    with servers.running(answer) as server:
        return download.url_file(f"{server.url}/a.npz", **options), server


def on_disk(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("length", [None, "chunked", 10**12, 1000, 999, 1001])
def test_a_server_that_never_stops_fills_neither_disk_nor_memory(length, tmp_path):
    start = time.monotonic()
    with memory.at_most(50_000_000), contextlib.suppress(ConnectionError):
        path, _ = fetch_from(servers.endless(1000, length))
        assert length == 1000 and path.stat().st_size == 1000
    assert on_disk(tmp_path) <= 1001
    assert time.monotonic() - start < 60


@pytest.mark.parametrize(
    "answer",
    [
        servers.dripping(10**6, pause=0.05),
        servers.dripping_head(10**6, pause=0.05),
        servers.stating(10**6, lambda _: [servers.head(content_length=10**6), 99.0]),
        servers.stating(10**6, lambda _: [99.0]),
        servers.endless(10**6, "chunked"),
        lambda *_: [99.0],
    ],
    ids=["bytes", "headers", "no content", "no answer", "chunks", "nothing"],
)
def test_a_server_that_is_too_slow_is_left(answer):
    start = time.monotonic()
    with pytest.raises(ConnectionError, match="could not be downloaded"):
        fetch_from(answer)
    assert time.monotonic() - start < 60


def test_the_environment_sets_the_least_rate(monkeypatch):
    answer = servers.dripping(200, part=b"x" * 10, pause=0.1)
    with pytest.raises(
        ConnectionError,
        match="less than 1,000 bytes per second; KERAS_NFNETS_DOWNLOAD_RATE",
    ):
        fetch_from(answer)
    monkeypatch.setenv("KERAS_NFNETS_DOWNLOAD_RATE", "20")
    path, _ = fetch_from(answer)
    assert path.stat().st_size == 200


def test_the_environment_sets_the_longest_time(monkeypatch):
    monkeypatch.setenv("KERAS_NFNETS_DOWNLOAD_SECONDS", "1")
    # Each second time it breaks off, so that there is always something new.
    answer = servers.dripping(10**9, part=b"x" * 10_000, pause=0.01)
    with pytest.raises(ConnectionError, match="not complete after 1 seconds; KERAS_"):
        fetch_from(answer)


def test_a_disk_that_is_too_small_is_an_error_before_the_download(tmp_path):
    with pytest.raises(OSError, match="cannot be written to") as error:
        fetch_from(servers.endless(10**17, 10**17))
    assert not isinstance(error.value, ConnectionError)
    assert not [*tmp_path.rglob("*.partial")]


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": '"2"', "Content_Range": "bytes 40000-99999/100000"},
        {"Content_Range": "bytes 40001-99999/100000"},
        {"ETag": '"1"', "Content_Range": "bytes 0-59999/100000"},
        {"ETag": '"1"', "Content_Range": "bytes 40000-99999/200000"},
        {"ETag": '"1"', "Content_Range": "none"},
        {"ETag": '"1"'},
        {"status": 200},
    ],
    ids=["tag", "begin", "other part", "size", "no range", "missing", "anew"],
)
def test_no_download_mixes_two_files(headers):
    path, server = fetch_from(servers.changing(FIRST, SECOND, 40_000, **headers))
    assert path.read_bytes() == SECOND
    resumed = [sent for _, _, sent in server.requests if "Range" in sent]
    assert [sent["If-Range"] for sent in resumed] == ['"1"']


def test_a_download_without_a_checksum_resumes_by_its_etag():
    headers = {"ETag": '"1"', "Content_Range": "bytes 40000-99999/100000"}
    path, _ = fetch_from(servers.changing(FIRST, FIRST, 40_000, **headers))
    assert path.read_bytes() == FIRST


def test_links_in_the_cache_are_not_written_to(tmp_path):
    answer = servers.stating(
        len(FIRST), lambda _: [servers.head(content_length=len(FIRST)), FIRST]
    )
    md5 = hashlib.md5(FIRST).hexdigest()
    for link in (os.symlink, os.link):
        mine = tmp_path / "mine.txt"
        mine.write_bytes(b"mine")
        with servers.running(answer) as server:
            url = f"{server.url}/a.npz"
            final = download._path_in_keras_home(url)
            final.parent.mkdir(parents=True)
            link(mine, final.with_name("a.npz.partial"))
            assert download.url_file(url, md5=md5) == final
        assert mine.read_bytes() == b"mine"
        assert final.read_bytes() == FIRST and not final.is_symlink()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Function that runs a hub with an answer for GET, and its cache."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    @contextlib.contextmanager
    def running(get=lambda: [servers.head(content_length=len(FIRST)), FIRST], user=""):
        headers = {
            "ETag": f'"{hashlib.sha256(FIRST).hexdigest()}"',
            "X_Repo_Commit": COMMIT,
        }
        answer = servers.stating(len(FIRST), lambda _: get(), **headers)
        with servers.running(answer) as server:
            url = server.url.replace("://", f"://{user}")
            set_hub(monkeypatch, url)
            yield server

    running.cache = cache
    running.repo = hub_cache.repository(cache, "a/b")
    return running


def from_hub():
    return download.hub_file("a/b", "model.safetensors")


@pytest.mark.parametrize(
    "answer",
    [servers.endless(0), servers.endless(0, "chunked"), servers.dripping(len(FIRST))],
    ids=["no length", "chunked", "slow"],
)
def test_a_hub_that_never_stops_is_left(hub, answer):
    start = time.monotonic()
    with (
        hub(lambda: answer("GET", "/", {})),
        pytest.raises(ConnectionError, match="could not be downloaded"),
    ):
        from_hub()
    assert time.monotonic() - start < 60
    assert on_disk(hub.cache) <= len(FIRST) + 1


def copied(hub, content, kind):
    """Put a file into the cache that is not stored under its digest."""
    pointer = hub_cache.snapshot(hub.repo, COMMIT, "model.safetensors")
    reference = hub_cache.reference(hub.repo, "main")
    for path in (pointer, reference):
        path.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(COMMIT)
    if kind == "file":
        pointer.write_bytes(content)
    else:
        elsewhere = hub.cache.parent / "elsewhere"
        # A name that looks like a digest is none of the cache.
        elsewhere = elsewhere / ("a" * 64 if kind == "digest" else "model")
        elsewhere.parent.mkdir()
        elsewhere.write_bytes(content)
        pointer.symlink_to(elsewhere)
    return pointer


@pytest.mark.parametrize("kind", ["file", "link", "digest"])
def test_copies_and_links_in_the_cache_are_checked(hub, kind):
    pointer = copied(hub, SECOND, kind)
    with hub() as server:
        with pytest.warns(
            UserWarning, match="differs from the file on the hub and is replaced"
        ):
            assert from_hub().read_bytes() == FIRST
        asked = len(server.requests)
        assert from_hub() == pointer
        assert len(server.requests) == asked


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_right_copy_is_kept_and_then_checked_offline(hub, kind):
    pointer = copied(hub, FIRST, kind)
    with hub() as server:
        assert from_hub() == pointer
        assert [method for method, _, _ in server.requests] == ["HEAD"]
        kept = pointer.is_symlink()
    assert kept == (kind == "link")
    assert from_hub() == pointer  # the hub is not there any more
    pointer.write_bytes(SECOND)
    with (
        pytest.warns(UserWarning, match="is corrupt"),
        pytest.raises(ConnectionError),
    ):
        from_hub()


def test_a_copy_that_cannot_be_checked_is_used_with_a_warning(hub):
    pointer = copied(hub, FIRST, "file")
    with hub():
        pass
    with pytest.warns(
        UserWarning, match="is used unchecked: .*could not be downloaded"
    ):
        assert from_hub() == pointer
    # Neither can it where nothing can be written.
    shutil.rmtree(hub.cache / ".locks")
    (hub.cache / ".locks").write_text("")
    with pytest.warns(UserWarning, match="is used unchecked: "):
        assert from_hub() == pointer


@pytest.mark.parametrize(
    "content",
    [b"x" * 200_000_000, b"\xff" * 40, b"../../..", b""],
    ids=["huge", "no text", "elsewhere", "empty"],
)
def test_a_reference_that_is_no_commit_is_not_read(hub, content):
    copied(hub, FIRST, "file")
    hub_cache.reference(hub.repo, "main").write_bytes(content)
    with hub(), memory.at_most(50_000_000):
        assert from_hub().read_bytes() == FIRST
    assert hub_cache.reference(hub.repo, "main").read_text() == COMMIT


def all_texts(error):
    """Return the texts of an error and of those that a traceback shows with it."""
    texts = []
    while error is not None:
        texts.append(repr(error))
        suppressed = error.__suppress_context__
        error = error.__cause__ or (None if suppressed else error.__context__)
    return "\n".join(texts)


SECRETS = ["hunter2", "s3cr3t", "p%40ss", "p@ss"]


@pytest.mark.parametrize(
    "status",
    [
        [servers.head(404)],
        [b"garbage\r\n\r\n"],
        [servers.head(302, Location="http://me:hunter2@127.0.0.1:1/x?token=s3cr3t")],
        [servers.head(302, Location="ftp://me:hunter2@127.0.0.1/x")],
        [],
    ],
    ids=["status", "garbage", "redirected", "to ftp", "nothing"],
)
def test_errors_show_no_passwords(status):
    with servers.running(lambda *_: status) as server:
        at = server.url.replace("://", "://me:p%40ss@")
        for url in (f"{at}/a.npz?access_token=s3cr3t&v=1", f"{at}/hunter.npz"):
            with pytest.raises((ConnectionError, ValueError)) as error:
                download.url_file(url)
            text = all_texts(error.value)
            assert not [secret for secret in SECRETS if secret in text], text


def test_a_wrong_checksum_shows_no_passwords():
    answer = servers.stating(1, lambda _: [servers.head(content_length=1), b"x"])
    with servers.running(answer) as server:
        url = server.url.replace("://", "://me:hunter2@") + "/a.npz?sig=s3cr3t"
        with pytest.raises(ValueError, match="checksum") as error:
            download.url_file(url, md5="0" * 32)
    text = all_texts(error.value)
    assert "***" in text and not [secret for secret in SECRETS if secret in text]


def test_a_hub_shows_no_passwords(hub, caplog, capfd):
    with (
        hub(lambda: [servers.head(503)], user="me:hunter2@"),
        pytest.raises(ConnectionError) as error,
    ):
        from_hub()
    with pytest.raises(ConnectionError) as silent:
        from_hub()
    out, err = capfd.readouterr()
    text = all_texts(error.value) + all_texts(silent.value) + caplog.text + out + err
    assert "***" in text and "hunter2" not in text


def test_a_password_is_sent_to_its_host_only():
    answer = servers.stating(1, lambda _: [servers.head(content_length=1), b"x"])
    with servers.running(answer) as other:
        there = [servers.head(302, Location=f"{other.url}/b.npz")]
        with servers.running(lambda *_: there) as server:
            url = server.url.replace("://", "://me:hunter2@") + "/a.npz"
            assert download.url_file(url).read_bytes() == b"x"
    assert all("Authorization" in sent for _, _, sent in server.requests)
    assert not any("Authorization" in sent for _, _, sent in other.requests)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see http://a:b@c/d", "see http://***@c/d"),
        ("http://a:b@e@c/d, x@y", "http://***@c/d, x@y"),
        ("/x?X-Amz-Signature=aa&y=1", "/x?X-Amz-Signature=***&y=1"),
        ("/x?y=1&api_key=aa'", "/x?y=1&api_key=***'"),
        ("nonnumeric port: 'b@c:80'", "nonnumeric port: '***@c:80'"),
        ("key=aa", "key=aa"),
        ("nothing", "nothing"),
    ],
)
def test_passwords_and_tokens_in_urls_are_masked(text, expected):
    assert without_secrets(text) == expected
