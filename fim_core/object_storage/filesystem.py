"""File systems of object storage, and their errors in plain words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fim_core.errors import FimError, is_disk_full, reason_of
from fim_core.object_storage.urls import scheme_of

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "hf": "huggingface_hub"}
"""The package that serves a scheme."""

_CREDENTIALS = {
    "s3": "Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a role",
    "gs": "Run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
    "az": "Set AZURE_STORAGE_ACCOUNT_NAME and log in with `az login`, or set AZURE_STORAGE_CONNECTION_STRING",
    "hf": "Run `hf auth login`, or set HF_TOKEN",
}
"""How to provide credentials, by scheme. They are found by each vendor's own library."""

_ABOUT_CREDENTIALS = re.compile(
    r"Credential|ProfileNotFound|RefreshError|TokenRetrieval|SSOToken|LocalToken|Unauthorized"
)
"""Names of the vendors' exceptions about credentials, which have no common class."""


def open_filesystem(url: str) -> Any:
    """The fsspec file system of a URL: a new one, which knows nothing of earlier listings and credentials.

    Raises:
        FimError: its package is not installed, or it finds no credentials.
    """
    import fsspec

    scheme = scheme_of(url)
    try:
        return fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False)
    except ImportError as error:
        raise FimError(
            f"{url} needs the package {PACKAGES[scheme]}, which is not installed. Install it: "
            f"pip install 'fim-assets[{scheme}]'."
        ) from error
    except ValueError as error:  # adlfs finds neither an account nor credentials
        raise _without_credentials(url) from error


@contextmanager
def reporting(url: str, doing: str = "read") -> Iterator[None]:
    """Replace errors of a file system by one that names the cause and the cure, and never credentials.

    Args:
        doing: `read` or `written`, for the message.

    Raises:
        FimError: an object or bucket is missing, access is denied, credentials are missing, or the service cannot be reached.
    """
    try:
        yield
    # The libraries raise errors of their own, of their HTTP clients and of the system, with no narrower common class.
    except Exception as error:
        if isinstance(error, FimError) or is_disk_full(error):
            raise
        raise _explained(url, error, doing) from error


def _explained(url: str, error: Exception, doing: str) -> FimError:
    if isinstance(error, FileNotFoundError):
        return FimError(f"There is no bucket or object {url}. Check the name, and the account that it belongs to.")
    if _ABOUT_CREDENTIALS.search(type(error).__name__):
        return _without_credentials(url)
    if isinstance(error, PermissionError):
        return FimError(
            f"{url} cannot be {doing}: access is denied. Check the credentials, and their permissions on this bucket. "
            f"{_CREDENTIALS[scheme_of(url)]}."
        )
    return FimError(f"{url} cannot be {doing} ({reason_of(error)}). Check the connection, and run again.")


def _without_credentials(url: str) -> FimError:
    return FimError(f"There are no valid credentials for {url}. {_CREDENTIALS[scheme_of(url)]}.")
