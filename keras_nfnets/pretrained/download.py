"""Download of published weight files, verified before they get their final names."""

import base64
import concurrent.futures
import contextlib
import hashlib
import http.client
import os
import pathlib
import re
import shutil
import threading
import time
import urllib.parse
import urllib.request
import warnings

from keras_nfnets.pretrained import hub_cache

_TIMEOUT = 10  # seconds without a byte from a server
_RESPONSE_TIMEOUT = 20  # seconds for its first response, all its addresses together
_MAX_IDLE_ATTEMPTS = 3  # attempts in a row without any bytes


def hub_file(repo_id, filename, revision=None):
    """Return the path of a Hugging Face Hub file, downloading it if it is not cached.

    The environment variables of `huggingface_hub` apply (`HF_HOME`, `HF_ENDPOINT`,
    `HF_HUB_OFFLINE`, ...). A cached file is used without looking for a newer version,
    but its content is compared with the digest under which it is stored. If they
    differ, the file is removed with a warning and downloaded again.

    Args:
        repo_id: str. Name of the repository, such as `"timm/nfnet_l0.ra2_in1k"`.
        filename: str. Name of the file in that repository.
        revision: str or None. Branch, tag or commit; `None` means `"main"`.

    Returns:
        `pathlib.Path` of the file in the cache.

    Raises:
        ConnectionError: the file is not in the cache and cannot be downloaded: no
            network, no such file, offline mode, or the server keeps disconnecting.
        OSError: the file cannot be written, for example because the disk is full.
        ValueError: the checksum of the download is not that of the hub, or `repo_id`
            is malformed.

    Example:

    >>> hub_file("timm/nfnet_l0.ra2_in1k", "model.safetensors")  # doctest: +SKIP
    PosixPath('/home/me/.cache/huggingface/hub/.../model.safetensors')
    """
    cache = hub_cache.folder()
    revision = revision or "main"
    if path := _in_hub_cache(cache, repo_id, filename, revision):
        return path
    repo = hub_cache.repository(cache, repo_id)
    staging = cache / f".keras_nfnets-{repo.name}"
    with hub_cache.locked(hub_cache.lock_file(cache, repo)):
        # Another process may have downloaded it meanwhile. While this one holds the
        # lock, no other removes the file.
        if path := _in_hub_cache(cache, repo_id, filename, revision, remove=True):
            return path
        try:
            # A process that was killed may have left files.
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            return _from_hub(repo, staging, repo_id, filename, revision)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _in_hub_cache(cache, repo_id, filename, revision, remove=False):
    """Return the path of a cached file, or None if it is missing or corrupt."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo_id, filename, cache, revision)
    if not isinstance(found, str):
        return None
    pointer = pathlib.Path(found)
    blob = hub_cache.blob_of(pointer)
    if blob is None or _digest(blob, hub_cache.algorithm(blob.name)) == blob.name:
        return pointer
    if remove:
        warnings.warn(
            f"{found} is corrupt: removed; it will be downloaded again", stacklevel=3
        )
        blob.unlink(missing_ok=True)
        pointer.unlink(missing_ok=True)
    return None


def _from_hub(repo, staging, repo_id, filename, revision):
    """Download a file by way of `staging` into the folder `repo` of the hub's cache."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    url = hf_hub_url(repo_id, filename, revision=revision)
    advice = "set HF_ENDPOINT to a mirror of the hub, unset HF_HUB_OFFLINE"
    with _explained(url, repo.parent, advice):
        # Without a time limit, `hf_hub_download` tries an unreachable host for minutes.
        known = _in_time(get_hf_file_metadata, url)
        digest, commit = str(known.etag), str(known.commit_hash)
        kind = hub_cache.algorithm(digest)
        if not (kind and re.fullmatch("[0-9a-f]{40}", commit)):
            raise ConnectionError(
                f"an answer that is not of a hub: ETag {digest}, X-Repo-Commit {commit}"
            )
    pointer = hub_cache.snapshot(repo, commit, filename)
    has_links = hub_cache.has_links(repo.parent)
    target = hub_cache.blob(repo, digest) if has_links else pointer
    if not target.is_file() or _digest(target, kind) != digest:
        with _explained(url, repo.parent, advice, known.size):
            # `huggingface_hub` checks only the size, so the file must not be written
            # to its cache yet.
            downloaded = hf_hub_download(
                repo_id, filename, revision=commit, cache_dir=staging, local_dir=staging
            )
        received = _digest(pathlib.Path(downloaded), kind)
        if received != digest:
            raise _wrong_checksum(url, kind, digest, received)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(downloaded, target)
    pointer.parent.mkdir(parents=True, exist_ok=True)
    if has_links:
        os.symlink(os.path.relpath(target, pointer.parent), staging / "link")
        os.replace(staging / "link", pointer)
    # Records the commit of a branch, so that the file is found without a network.
    if revision != commit:
        (staging / "ref").write_text(commit)
        ref = hub_cache.reference(repo, revision)
        ref.parent.mkdir(parents=True, exist_ok=True)
        os.replace(staging / "ref", ref)
    return pointer


def url_file(url, md5=None):
    """Return the path of the file at a URL, downloading it if it is not cached.

    The cache is in the folder of Keras. An interrupted download resumes if there is a
    checksum to verify that its parts belong together.

    Args:
        url: str. URL of the file, `"https://..."`.
        md5: str or None. MD5 of the file, 32 hexadecimal digits. Without it, a download
            is checked against the MD5 that Google Cloud Storage sends, or only by its
            size if it comes from other servers, and a cached file is not checked.

    Returns:
        `pathlib.Path` under `$KERAS_HOME/models/keras_nfnets`, where `KERAS_HOME` is
        `~/.keras` if not set.

    Raises:
        ConnectionError: the file is not in the cache and cannot be downloaded: no
            network, no such file, or the server keeps disconnecting.
        OSError: the file cannot be written, for example because the disk is full.
        ValueError: the checksum of the download is wrong, `url` is not that of a file,
            or `md5` is not a digest.

    Example:

    >>> url_file("https://storage.googleapis.com/dm-nfnets/F0_haiku.npz")  # doctest: +SKIP
    PosixPath('/home/me/.keras/models/keras_nfnets/.../F0_haiku.npz')
    """
    final = _path_in_keras_home(url)
    md5 = "" if md5 is None else str(md5).lower()
    if not re.fullmatch("([0-9a-f]{32})?", md5):
        raise ValueError(f"`md5` must be 32 hexadecimal digits. Received: md5={md5!r}")

    def is_cached():
        return final.is_file() and md5 in ("", _digest(final, "md5"))

    if is_cached():
        return final
    with hub_cache.locked(final.with_name(final.name + ".lock")):
        # Another process may have downloaded it meanwhile.
        if is_cached():
            return final
        if final.exists():
            backup = final.with_name(final.name + ".wrong")
            os.replace(final, backup)
            warnings.warn(
                f"The MD5 of {final} is not {md5}: moved to {backup}; it will be "
                "downloaded again",
                stacklevel=2,
            )
        _from_url(url, final, md5)
    return final


def _path_in_keras_home(url):
    parts = urllib.parse.urlsplit(str(url))
    folder, _, name = parts.path.rpartition("/")
    name = urllib.parse.unquote(name)
    if parts.scheme not in ("http", "https") or not parts.netloc or not name.strip("."):
        raise ValueError(
            f"`url` must be the URL of a file, https://host/file. Received: url={url!r}"
        )
    # The folder of Keras, but without its fallback in /tmp, where other users could
    # have put files.
    home = pathlib.Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()
    # A file of the same name from another address is another file.
    origin = urllib.parse.quote(parts.netloc.rpartition("@")[2] + folder, safe="")
    folder = home / "models" / "keras_nfnets" / origin
    return folder / urllib.parse.quote(name, safe=" +")


def _from_url(url, final, md5):
    """Download a file by way of `<final>.partial`."""
    with _explained(url, final.parent), _in_time(_open, url, "HEAD") as answer:
        size = int(answer.headers["Content-Length"] or 0)
        if not size:
            raise ConnectionError(
                "no Content-Length, so that a complete file cannot be recognized"
            )
    hashes = ",".join(answer.headers.get_all("x-goog-hash", []))
    sent = re.search(r"\bmd5=([\w+/]{22}==)", hashes)
    if sent and not md5:
        md5 = base64.b64decode(sent[1]).hex()
    partial = final.with_name(final.name + ".partial")
    if not md5 or (partial.exists() and partial.stat().st_size > size):
        partial.unlink(missing_ok=True)
    # The file may have changed since its first part was downloaded. In that case it is
    # downloaded once more, from the beginning.
    for _ in range(1 + partial.exists()):
        with _explained(url, final.parent, size=size):
            try:
                _fetch(url, partial, size)
            except OSError as error:
                # A partial file must not fill the disk.
                if not isinstance(error, ConnectionError):
                    partial.unlink(missing_ok=True)
                raise
        received = _digest(partial, "md5")
        if md5 in ("", received):
            os.replace(partial, final)
            return
        partial.unlink()
    raise _wrong_checksum(url, "md5", md5, received)


def _fetch(url, partial, size):
    """Write the bytes that `partial` lacks of `size`, even if the server disconnects.

    Raises ConnectionError after several attempts in a row without any bytes.
    """
    from tqdm.auto import tqdm

    partial.touch()
    with (
        partial.open("r+b") as file,
        tqdm(total=size, unit="B", unit_scale=True, desc=partial.stem) as bar,
    ):
        at, failure, idle = file.seek(0, os.SEEK_END), None, 0
        while at != size:
            if idle == _MAX_IDLE_ATTEMPTS:
                raise failure
            if failure:
                time.sleep(1)
            before, failure = at, ConnectionError(f"only {at:,} of {size:,} bytes")
            try:
                for start, chunk in _chunks(url, at):
                    # A server that does not support `Range` sends the complete file.
                    if start != at:
                        file.seek(start)
                    file.write(chunk)
                    at = start + len(chunk)
                    bar.update(at - bar.n)
            except ConnectionError as error:
                failure = error
            idle = 0 if at > before else idle + 1
        file.flush()
        os.fsync(file.fileno())


def _chunks(url, at):
    """Yield `(position, bytes)` from `at`, or from 0 if the server ignores `Range`."""
    try:
        with _open(url, **({"Range": f"bytes={at}-"} if at else {})) as answer:
            at = at if answer.status == 206 else 0
            while chunk := answer.read1(1 << 20):
                yield at, chunk
                at += len(chunk)
    except (OSError, http.client.HTTPException) as error:
        # Distinguishes errors of the network from those of the disk.
        raise ConnectionError(_received(error)) from error


def _open(url, method="GET", **headers):
    # Not with the hub's client, as no user data may be sent to other hosts.
    headers["User-Agent"] = "keras_nfnets"
    request = urllib.request.Request(url, method=method, headers=headers)
    return urllib.request.urlopen(request, timeout=_TIMEOUT)


def _in_time(function, *args):
    """Return `function(*args)`, or raise a TimeoutError.

    An unreachable host may have many addresses, all of which are tried for a while.
    """
    future = concurrent.futures.Future()

    def run():
        try:
            future.set_result(function(*args))
        except Exception as error:  # noqa: BLE001 (raised by `result`)
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(_RESPONSE_TIMEOUT)


def _digest(path, kind):
    def start():
        if kind != "git":
            return hashlib.new(kind, usedforsecurity=False)
        header = b"blob %d\0" % path.stat().st_size
        return hashlib.sha1(header, usedforsecurity=False)

    with path.open("rb") as file:
        return hashlib.file_digest(file, start).hexdigest()


@contextlib.contextmanager
def _explained(url, folder, advice="try again later", size="unknown"):
    """Context that raises OSError for disk errors, ConnectionError for others."""
    try:
        yield
    # The HTTP libraries of different `huggingface_hub` releases share no other class.
    except Exception as error:
        is_network = isinstance(error, (ConnectionError, TimeoutError))
        if isinstance(error, OSError) and error.errno and not is_network:
            raise OSError(
                error.errno,
                f"{error.strerror}: {url}, {size} bytes, cannot be written to {folder}",
            ) from error
        raise ConnectionError(
            f"{url} is not in {folder} and could not be downloaded. You can {advice}, or "
            "download the file manually and pass its path as `weights=`. "
            f"Received: {_received(error)}"
        ) from error


def _received(error):
    # `code` is set by urllib, `response` by the hub's libraries.
    response = getattr(error, "response", None)
    status = getattr(error, "code", None) or getattr(response, "status_code", None)
    if status:
        return f"HTTP {status}"
    text = str(error).partition("\n")[0].rstrip(".") or "no answer"
    # The message of our own ConnectionError already contains the original type.
    return text if type(error) is ConnectionError else f"{type(error).__name__}: {text}"


def _wrong_checksum(url, kind, digest, received):
    return ValueError(
        f"The {kind} checksum of the download from {url} is wrong; it was deleted. Try "
        "again later, or download the file manually and pass its path as `weights=`. "
        f"Expected: {digest}. Received: {received}"
    )
