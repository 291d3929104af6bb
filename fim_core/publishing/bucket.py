"""Publishing to a prefix of a bucket."""

from __future__ import annotations

import json
from typing import Any

from fim_core.errors import FimError
from fim_core.object_storage.filesystem import open_filesystem, reporting
from fim_core.object_storage.listing import list_files
from fim_core.publishing.release import RECORD, Release, require_same_experiment


def publish_to_bucket(release: Release, url: str) -> bool:
    """Make a release the champion of a prefix; returns whether anything had to be changed.

    Objects that an interrupted attempt has uploaded are not uploaded again.

    Raises:
        FimError: the prefix belongs to another experiment, or the bucket cannot be written.
    """
    url = url.rstrip("/")
    filesystem = open_filesystem(url)
    with reporting(url, "written"):
        root = filesystem._strip_protocol(url)
        record = _read_record(filesystem, f"{root}/{RECORD}", url)
    require_same_experiment(record, release, url)
    missing = _missing(release, filesystem, url)
    with reporting(url, "written"):
        for file in missing:
            filesystem.put_file(str(release.folder / file), f"{root}/{release.name}/{file}")
    if missing and (absent := _missing(release, filesystem, url)):
        raise FimError(f"{url}/{release.name}/{absent[0]} is not as it was uploaded. Check what else writes there.")
    if not missing and record == release.record:
        return False
    with reporting(url, "written"):
        filesystem.pipe_file(f"{root}/{RECORD}", (json.dumps(release.record, indent=2) + "\n").encode())
    return True


def _read_record(filesystem: Any, path: str, url: str) -> Any:
    try:
        return json.loads(filesystem.cat_file(path))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise FimError(
            f"{url}/{RECORD} is not JSON, so it is not replaced. Remove it, or name another place."
        ) from error


def _missing(release: Release, filesystem: Any, url: str) -> list[str]:
    """Files of the release that are not in the bucket with their size."""
    found = list_files(f"{url}/{release.name}", filesystem, may_be_empty=True).files
    return [file for file, size in release.files.items() if file not in found or found[file].size != size]
