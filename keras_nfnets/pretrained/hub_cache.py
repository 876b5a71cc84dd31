"""Layout of the Hugging Face Hub's cache, and internals of `huggingface_hub`.

The layout is documented, "as a reference for reimplementing the cache system", at
https://huggingface.co/docs/hub/local-cache; no public function writes a file that was
downloaded elsewhere. A new `huggingface_hub` may break these functions and their tests in
`tests/pretrained/test_download.py`, and nothing else. Seen to work: huggingface_hub 0.30
and 2.4.
"""

import contextlib
import logging
import os
import pathlib
import re
import urllib.parse

from keras_nfnets.printing import without_secrets

# Layout.


def folder():
    """Return the folder of the cache, which environment variables may set."""
    from huggingface_hub import constants

    return pathlib.Path(constants.HF_HUB_CACHE)


def repository(cache, repo_id):
    """Return the folder of a repository of models in the cache."""
    return cache / f"models--{repo_id.replace('/', '--')}"


def blob(repo, digest):
    """Return the path of the content of a file, which is stored under its digest."""
    return repo / "blobs" / digest


def snapshot(repo, commit, filename):
    """Return the path of a file of a commit: a link to a blob.

    Where there are no links, it is the file itself.
    """
    return repo / "snapshots" / commit / filename


def reference(repo, revision):
    """Return the path of the file that contains the commit of a branch or tag."""
    return repo / "refs" / revision


def lock_file(cache, repo):
    """Return the path of our lock of a repository, next to those of the hub's client."""
    return cache / ".locks" / repo.name / "keras_nfnets.lock"


def blob_of(repo, pointer):
    """Return the blob of a repository that a file of a snapshot is a link to.

    The result is None for a file, as on systems without links (Windows), and for a link to
    elsewhere: the name does not say the digest of its content.
    """
    if not pointer.is_symlink():
        return None
    target = pathlib.Path(os.path.normpath(pointer.parent / pointer.readlink()))
    is_blob = target.parent == pathlib.Path(os.path.normpath(repo / "blobs"))
    return target if is_blob and algorithm(target.name) else None


def recorded_digest(repo, commit, filename):
    """Return the path of our record of the digest of a file that is no link to a blob."""
    return repo / "keras_nfnets" / commit / f"{filename}.digest"


def read_digest(path):
    """Return the digest, such as a commit, that a small file contains, or None."""
    try:
        with open(path, "rb") as file:
            text = file.read(_LONGEST_DIGEST + 2).decode("ascii").strip()
    except (OSError, ValueError):
        return None
    return text if algorithm(text) else None


_LONGEST_DIGEST = 64


def algorithm(digest):
    """Return the kind of a digest under which the hub stores a file.

    A large file is stored under its `"sha256"`, and a small one under its `"git"` hash.
    The result is None for names that are not digests.
    """
    is_hexadecimal = re.fullmatch("[0-9a-f]+", digest)
    return {64: "sha256", 40: "git"}.get(len(digest)) if is_hexadecimal else None


def headers_for(url):
    """Return the headers, with the user's token, for a URL; none if it is of another host."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers

    hosts = {urllib.parse.urlsplit(at).netloc for at in (url, constants.ENDPOINT)}
    return build_hf_headers() if len(hosts) == 1 else {}


# Internals.


def has_links(cache):
    """Whether the hub's client stores links in this folder, or copies of files.

    It depends on the file system and on settings, and the client has to find the files.
    """
    from huggingface_hub.file_download import are_symlinks_supported

    return are_symlinks_supported(cache)


@contextlib.contextmanager
def locked(path):
    """Context in which no other process holds the lock of this path.

    The hub's lock also works on file systems whose files cannot be locked.
    """
    from huggingface_hub.utils import WeakFileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(path):
        yield


@contextlib.contextmanager
def log_without_secrets():
    """Context in which the hub's client logs URLs without passwords and tokens."""

    def mask(record):
        record.msg, record.args = without_secrets(record.getMessage()), ()
        return True

    logger = logging.getLogger("huggingface_hub.utils._http")
    logger.addFilter(mask)
    try:
        yield
    finally:
        logger.removeFilter(mask)
