"""Download of published weight files, verified before they get their final names."""

import base64
import concurrent.futures
import contextlib
import errno
import functools
import hashlib
import http.client
import os
import pathlib
import re
import shutil
import ssl
import threading
import time
import traceback
import urllib.parse
import urllib.request
import warnings

from keras_nfnets import checks
from keras_nfnets.pretrained import hub_cache
from keras_nfnets.printing import printable, without_secrets

_TIMEOUT = 10  # seconds without a byte from a server
_RESPONSE_TIMEOUT = 20  # seconds for its first response, all its addresses together
_MAX_IDLE_ATTEMPTS = 3  # attempts in a row without any bytes
_PERIOD = 30  # seconds over which the rate of a download is measured
# Environment variables of the other limits, and their defaults.
_SECONDS = "KERAS_NFNETS_DOWNLOAD_SECONDS", 6 * 60 * 60
_RATE = "KERAS_NFNETS_DOWNLOAD_RATE", 1000  # bytes per second


def hub_file(repo_id, filename, revision=None):
    """Return the path of a Hugging Face Hub file, downloading it if it is not cached.

    The environment variables of `huggingface_hub` apply (`HF_HOME`, `HF_ENDPOINT`,
    `HF_HUB_OFFLINE`, ...). A cached file is used without looking for a newer version,
    but its content is compared with the digest under which it is stored. If they
    differ, the file is removed with a warning and downloaded again. A file that is not
    stored under a digest (one that was copied there, or a link to elsewhere) is compared
    with the digest that the hub states; if the hub cannot be reached, it is used with a
    warning.

    A download ends with an error after `KERAS_NFNETS_DOWNLOAD_SECONDS` (by default
    21,600, six hours), or if less than `KERAS_NFNETS_DOWNLOAD_RATE` bytes per second (by
    default 1,000) come in half a minute. These are environment variables.

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
    checks.installed("A download", "huggingface_hub")
    cache = hub_cache.folder()
    revision = revision or "main"
    path, is_checked = _in_hub_cache(cache, repo_id, filename, revision)
    if is_checked:
        return path
    try:
        return _checked_or_downloaded(cache, repo_id, filename, revision)
    except OSError as error:  # no network, or the cache cannot be written to
        if path is None or not path.is_file():
            raise
        warnings.warn(
            f"{printable(path)} is used unchecked: {printable(error)}", stacklevel=2
        )
        return path


def _checked_or_downloaded(cache, repo_id, filename, revision):
    """Return the path of a cached file after checking it, or download it."""
    repo = hub_cache.repository(cache, repo_id)
    staging = cache / f".keras_nfnets-{repo.name}"
    with hub_cache.locked(hub_cache.lock_file(cache, repo)):
        # Another process may have downloaded it meanwhile. While this one holds the
        # lock, no other removes the file.
        path, is_checked = _in_hub_cache(
            cache, repo_id, filename, revision, remove=True
        )
        if is_checked:
            return path
        try:
            # A process that was killed may have left files.
            shutil.rmtree(staging, ignore_errors=True)
            _remove_link(staging)
            staging.mkdir()
            return _from_hub(repo, staging, repo_id, filename, revision)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _in_hub_cache(cache, repo_id, filename, revision, remove=False):
    """Find a cached file.

    Returns:
        Its path, or None if it is missing or corrupt; and whether its content is that of a
        known digest.
    """
    from huggingface_hub import try_to_load_from_cache

    repo = hub_cache.repository(cache, repo_id)
    reference = hub_cache.reference(repo, revision)
    if reference.is_file() and not hub_cache.read_digest(reference):
        return None, False
    found = try_to_load_from_cache(repo_id, filename, cache, revision)
    if not isinstance(found, str):
        return None, False
    pointer = pathlib.Path(found)
    blob = hub_cache.blob_of(repo, pointer)
    record = _record_of(repo, pointer, filename)
    digest = blob.name if blob else hub_cache.read_digest(record)
    if digest is None:
        return pointer, False
    if _digest(pointer, hub_cache.algorithm(digest)) == digest:
        return pointer, True
    if remove:
        warnings.warn(
            f"{printable(found)} is corrupt. It was removed and is downloaded again",
            stacklevel=3,
        )
        for path in (blob, pointer):
            if path is not None:
                path.unlink(missing_ok=True)
    return None, False


def _record_of(repo, pointer, filename):
    commit = pointer.relative_to(repo / "snapshots").parts[0]
    return hub_cache.recorded_digest(repo, commit, filename)


def _from_hub(repo, staging, repo_id, filename, revision):
    """Download a file by way of `staging` into the folder `repo` of the hub's cache."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repo_id, filename, revision=revision)
    advice = "set HF_ENDPOINT to a mirror of the hub, unset HF_HUB_OFFLINE"
    with _explained(url, repo.parent, advice), hub_cache.log_without_secrets():
        known = _in_time(get_hf_file_metadata, url)
        digest, commit = str(known.etag), str(known.commit_hash)
        kind = hub_cache.algorithm(digest)
        if not (kind and re.fullmatch("[0-9a-f]{40}", commit)):
            raise ConnectionError(
                f"an answer that does not come from a hub: ETag {digest}, X-Repo-Commit {commit}"
            )
        if known.size is None:
            raise ConnectionError("no size of the file")
    pointer = hub_cache.snapshot(repo, commit, filename)
    has_links = hub_cache.has_links(repo.parent)
    target = hub_cache.blob(repo, digest) if has_links else pointer
    # A file in place of the link was copied there.
    is_there = pointer.is_file() and _digest(pointer, kind) == digest
    if pointer.is_file() and not is_there:
        warnings.warn(
            f"{printable(pointer)} differs from the file on the hub and is replaced",
            stacklevel=4,
        )
    if not is_there and not (target.is_file() and _digest(target, kind) == digest):
        partial = staging / "file"
        address = known.location
        if address == url:  # the branch may get another commit meanwhile
            address = hf_hub_url(repo_id, filename, revision=commit)
        with _explained(url, repo.parent, advice, known.size):
            headers = hub_cache.headers_for(address)
            _fetch(address, partial, known.size, pointer.name, True, headers)
        received = _digest(partial, kind)
        if received != digest:
            raise _wrong_checksum(url, kind, digest, received)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, target)
    pointer.parent.mkdir(parents=True, exist_ok=True)
    if has_links and not is_there:
        os.symlink(os.path.relpath(target, pointer.parent), staging / "link")
        os.replace(staging / "link", pointer)
    if hub_cache.blob_of(repo, pointer) is None:
        _write(staging, digest, hub_cache.recorded_digest(repo, commit, filename))
    # Records the commit of a branch, so that the file is found without a network.
    if revision != commit:
        _write(staging, commit, hub_cache.reference(repo, revision))
    return pointer


def _write(staging, text, path):
    (staging / "text").write_text(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(staging / "text", path)


def url_file(url, md5=None):
    """Return the path of the file at a URL, downloading it if it is not cached.

    The cache is in the folder of Keras. An interrupted download resumes in a later call if
    there is a checksum to verify that its parts belong together; within a call it also
    resumes if the server states by an ETag that they do, and begins anew otherwise. It is
    subject to the same limits as those of `hub_file`.

    A user name and a password in the URL are sent to its host only.

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
                f"The MD5 of {printable(final)} is not {md5}. It was moved to "
                f"{printable(backup)} and is downloaded again",
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
            "`url` must be the URL of a file, https://host/file. "
            f"Received: url={without_secrets(repr(url), url)}"
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
        if size <= 0:
            raise ConnectionError(
                "no Content-Length, so that a complete file cannot be recognized"
            )
    hashes = ",".join(answer.headers.get_all("x-goog-hash", []))
    sent = re.search(r"\bmd5=([\w+/]{22}==)", hashes)
    if sent and not md5:
        md5 = base64.b64decode(sent[1]).hex()
    partial = final.with_name(final.name + ".partial")
    _remove_link(partial)
    if not md5 or (partial.exists() and partial.stat().st_size > size):
        partial.unlink(missing_ok=True)
    # The file may have changed since its first part was downloaded. In that case it is
    # downloaded once more, from the beginning.
    for _ in range(1 + partial.exists()):
        with _explained(url, final.parent, size=size):
            try:
                _fetch(url, partial, size, final.name, is_checked=bool(md5))
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


def _remove_link(path):
    """Remove a link or a second name of a file, which must not be written to."""
    if path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1):
        path.unlink()


class _Abandoned(ConnectionError):
    """A download that another attempt would not complete."""


class _Limits:
    """Time that a download may take, and rate at which it must receive bytes."""

    def __init__(self):
        self._seconds = checks.from_environment(*_SECONDS)
        self._rate = checks.from_environment(*_RATE)
        self._begin = self._begin_of_period = time.monotonic()
        self._received = 0

    def check(self, received=0):
        """Count bytes, or raise an `_Abandoned` if a limit is exceeded."""
        now = time.monotonic()
        self._received += received
        if now - self._begin > self._seconds:
            raise _Abandoned(
                f"not complete after {self._seconds:,.0f} seconds; {_SECONDS[0]} sets "
                "another limit"
            )
        elapsed = now - self._begin_of_period
        if elapsed > _PERIOD:
            if self._received < self._rate * elapsed:
                raise _Abandoned(
                    f"{self._received:,} bytes in {elapsed:.0f} seconds, less than "
                    f"{self._rate:,.0f} bytes per second; {_RATE[0]} sets another limit"
                )
            self._begin_of_period, self._received = now, 0


def _fetch(url, partial, size, name, is_checked, headers=None):
    """Write the bytes that `partial` lacks of `size`, even if the server disconnects.

    Args:
        url: str.
        partial: `pathlib.Path`. It must not be a link.
        size: int. Number of bytes of the complete file.
        name: str. Label of the progress bar.
        is_checked: bool. Whether a checksum will verify that all parts belong together.
        headers: dict or None. Headers that are sent to the host of `url` only.

    Raises:
        ConnectionError: several attempts in a row without any bytes, too little time, or
            a file of another size.
        OSError: the file cannot be written, or the disk is too small.
    """
    from tqdm.auto import tqdm

    limits = _Limits()
    with (
        open(partial, "r+b" if partial.exists() else "x+b") as file,
        tqdm(total=size, unit="B", unit_scale=True, desc=printable(name)) as bar,
    ):
        at, failure, idle, etag = file.seek(0, os.SEEK_END), None, 0, None
        if size - at > shutil.disk_usage(partial.parent).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        while at != size:
            if idle == _MAX_IDLE_ATTEMPTS:
                raise failure
            if failure:
                time.sleep(1)
            limits.check()
            before, failure = at, ConnectionError(f"only {at:,} of {size:,} bytes")
            try:
                # Without a checksum, only an ETag says that the file is still the same.
                begin = at if is_checked or etag else 0
                for start, chunk, sent in _chunks(url, begin, size, etag, headers):
                    # A server that does not support `Range` sends the complete file.
                    if start != at:
                        file.seek(start)
                    file.write(chunk)
                    at, etag = start + len(chunk), sent
                    bar.update(at - bar.n)
                    limits.check(len(chunk))
            except _Abandoned:
                raise
            except ConnectionError as error:
                failure = error
            idle = 0 if at > before else idle + 1
        file.flush()
        os.fsync(file.fileno())


def _chunks(url, at, size, etag, headers):
    """Yield `(position, bytes, ETag)` from `at`, or from 0 if that is not possible.

    It is not if the server ignores `Range`, sends other bytes, or has another file now.
    """
    try:
        wanted = {"Range": f"bytes={at}-"} if at else {}
        if at and etag:
            wanted["If-Range"] = etag
        answer = _in_time(_open, url, "GET", headers, wanted)
        sent = answer.headers["ETag"]
        if answer.status == 206 and not (
            _is_rest(answer.headers["Content-Range"], at, size)
            and (not etag or sent in (None, etag))
        ):
            answer.close()
            at, etag = 0, None
            answer = _in_time(_open, url, "GET", headers, {})
        with answer:
            if answer.status != 206:
                at = 0
                etag = sent if sent and sent.startswith('"') else None
            # (A server may take any time for the length of each chunk.)
            length = answer.headers["Content-Length"]
            if length is None:
                raise _Abandoned("no Content-Length")
            if at + int(length) != size:
                raise _Abandoned(
                    f"{at + int(length):,} bytes, where {size:,} were announced"
                )
            while chunk := answer.read1(1 << 20):
                yield at, chunk, etag
                at += len(chunk)
    except _Abandoned:
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:
        # Distinguishes errors of the network from those of the disk.
        raise ConnectionError(_received(error, url)) from _cause(error, url)


def _is_rest(content_range, at, size):
    """Whether a `Content-Range` is that of the bytes from `at` to the end."""
    wanted = rf"bytes\s+{at}-{size - 1}/({size}|\*)"
    return re.fullmatch(wanted, (content_range or "").strip()) is not None


def _open(url, method="GET", private=None, headers=None):
    """Send a request; `private` headers, and a password in the URL, go to its host only."""
    # Not with the hub's client, as no user data may be sent to other hosts.
    parts = urllib.parse.urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(
        parts._replace(netloc=host).geturl(),
        method=method,
        headers={"User-Agent": "keras_nfnets", **(headers or {})},
    )
    private = dict(private or {})
    if user:
        user = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
        private["Authorization"] = f"Basic {user}"
    for name, value in private.items():
        request.add_unredirected_header(name, value)
    return urllib.request.urlopen(request, timeout=_TIMEOUT, context=_context())


@functools.cache
def _context():
    """Return how hosts are verified: as the system does, or by the hub client's list."""
    context = ssl.create_default_context()
    with contextlib.suppress(ImportError):
        import certifi  # some installations of Python have no certificates

        context.load_verify_locations(certifi.where())
    return context


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
    shown = without_secrets(url)
    try:
        yield
    # The HTTP libraries of different `huggingface_hub` releases share no other class.
    except Exception as error:
        is_network = isinstance(error, (ConnectionError, TimeoutError))
        if isinstance(error, OSError) and error.errno and not is_network:
            raise OSError(
                error.errno,
                f"{error.strerror}: {shown}, {size} bytes, cannot be written to {folder}",
            ) from error
        raise ConnectionError(
            f"{shown} is not in {folder} and could not be downloaded. You can {advice}, or "
            "download the file manually and pass its path as `weights=`. "
            f"Received: {_received(error, url)}"
        ) from _cause(error, url)


def _received(error, url):
    # `code` is set by urllib, `response` by the hub's libraries.
    response = getattr(error, "response", None)
    status = getattr(error, "code", None) or getattr(response, "status_code", None)
    if status:
        return f"HTTP {status}"
    text = str(error).partition("\n")[0].rstrip(".") or "no answer"
    text = printable(without_secrets(text, url))
    # The message of our own ConnectionErrors already contains the original type.
    is_ours = type(error) in (ConnectionError, _Abandoned)
    return text if is_ours else f"{type(error).__name__}: {text}"


def _cause(error, url):
    """Return an error as the cause of another, or None if a traceback would show secrets."""
    shown = "".join(traceback.format_exception_only(error))
    causes = error.__cause__, error.__context__
    is_safe = shown == without_secrets(shown, url) and all(
        _cause(cause, url) for cause in causes if cause is not None
    )
    return error if is_safe else None


def _wrong_checksum(url, kind, digest, received):
    return ValueError(
        f"The {kind} checksum of the download from {without_secrets(url)} is wrong; it was "
        "deleted. Try again later, or download the file manually and pass its path as "
        f"`weights=`. Expected: {digest}. Received: {received}"
    )
