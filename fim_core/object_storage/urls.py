"""URLs of object storage."""

from __future__ import annotations

import re

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_QUERY = re.compile(r"\?[\w-]+=")

SCHEMES = ("s3", "gs", "az", "hf")
"""Schemes that can be read: Amazon S3 and compatible stores, Google Cloud Storage, Azure Blob Storage, the Hugging Face hub."""


def is_url(place: str) -> bool:
    """Whether a place is a URL, of any scheme, and not a path or a hub id."""
    return _URL.fullmatch(place) is not None


def scheme_of(url: str) -> str:
    """The scheme of a URL, such as `s3`."""
    return url.split("://", 1)[0]


def checked_place(place: str) -> str:
    """Validate a path or URL; paths are returned unchanged.

    Raises:
        ValueError: the scheme is unknown, there is no bucket, or the URL holds credentials (which are not repeated).
    """
    if (match := _URL.fullmatch(place)) is None:
        return place
    scheme, rest = match.groups()
    if scheme not in SCHEMES:
        raise ValueError(f"{scheme}:// is not supported; there are {', '.join(f'{known}://' for known in SCHEMES)}")
    bucket = rest.split("/", 1)[0]
    if "@" in bucket or _QUERY.search(rest):
        raise ValueError(
            "the URL holds credentials or a query; give only bucket and path, and credentials in the environment"
        )
    if not bucket:
        raise ValueError(f"{place} names no bucket; write {scheme}://bucket/path")
    return place
