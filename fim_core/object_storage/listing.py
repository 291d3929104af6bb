"""Lists of the objects under a URL: one object, everything under a prefix, or those that match a pattern."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from fim_core.errors import FimError
from fim_core.object_storage.filesystem import open_filesystem, reporting

_REVISION_KEYS = ("ETag", "etag", "blob_id")
_TIME_KEYS = ("LastModified", "mtime", "last_modified", "updated")


@dataclass(frozen=True)
class RemoteFile:
    """One version of an object.

    Attributes:
        path: as the file system names it: bucket and key.
        size: bytes.
        revision: ETag or blob id, which is another one for other content.
        modified: seconds since the epoch; 0 where the service does not tell.
    """

    path: str
    size: int
    revision: str
    modified: float


Kind = Literal["file", "folder", "pattern"]


@dataclass(frozen=True)
class Listing:
    """What a URL stands for.

    Attributes:
        filesystem: of fsspec.
        kind: one object, all objects under a prefix, or those that match a pattern.
        files: by name, in order: the object's own, or below the prefix or the part of the pattern without wildcards.
    """

    url: str
    filesystem: Any
    kind: Kind
    files: Mapping[str, RemoteFile]


def list_files(url: str, filesystem: Any = None, *, may_be_empty: bool = False) -> Listing:
    """List the objects that a URL stands for, as they are now.

    Args:
        filesystem: of fsspec. Default: a new one.

    Raises:
        FimError: there are none (unless there may be), or the bucket cannot be listed.
    """
    filesystem = filesystem or open_filesystem(url)
    kind: Kind
    with reporting(url):
        filesystem.invalidate_cache()
        root = filesystem._strip_protocol(url).rstrip("/")
        if "/" in root and filesystem.isfile(root):
            kind, base, found = "file", root.rpartition("/")[0], {root: filesystem.info(root)}
        elif glob.has_magic(root):
            parts = root.split("/")
            base = "/".join(parts[: next(at for at, part in enumerate(parts) if glob.has_magic(part))])
            kind, found = "pattern", filesystem.glob(root, detail=True)
        else:
            kind, base, found = "folder", root, filesystem.find(root, detail=True)
        bucket = root.split("/")[0]
        if not found and not filesystem.exists(bucket):
            raise FileNotFoundError(bucket)
    files = {
        path.removeprefix(f"{base}/"): remote_file(path, entry)
        for path, entry in sorted(found.items())
        if entry["type"] == "file" and not path.endswith("/")
    }
    if not files and not may_be_empty:
        raise FimError(f"There is no object {url}. The bucket exists: check the rest of the name.")
    return Listing(url, filesystem, kind, files)


def remote_file(path: str, entry: Mapping[str, Any]) -> RemoteFile:
    """The version of an object that an entry of fsspec describes."""
    revision = next((str(entry[key]).strip('"') for key in _REVISION_KEYS if entry.get(key)), "")
    time = next((entry[key] for key in _TIME_KEYS if entry.get(key)), None)
    time = datetime.fromisoformat(time) if isinstance(time, str) else time
    modified = time.timestamp() if isinstance(time, datetime) else 0.0
    return RemoteFile(path, int(entry["size"] or 0), revision or f"{modified}", modified)
