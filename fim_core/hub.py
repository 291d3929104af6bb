"""Access to models and tokenizers on disk or on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fim_core.errors import FimError

_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
ANSWER_SECONDS = 10.0


def require_place(place: str, what: str) -> None:
    """Require that `place` is a folder, or a repository of the hub that is cached here or can be read.

    The libraries that load it would retry an unreachable hub six times, with a message each time.

    Args:
        place: a path or a hub id.
        what: `model` or `tokenizer`, for the message.

    Raises:
        FimError: it is neither.
    """
    if Path(place).expanduser().is_dir():
        return
    if place.startswith((".", "/", "~")):
        raise FimError(f"There is no {what} folder {place}. Give a folder or a hub id.")
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, OfflineModeIsEnabled

    try:
        if any(isinstance(try_to_load_from_cache(place, file), str) for file in _FILES):
            return
        get_hf_file_metadata(hf_hub_url(place, _FILES[0]), timeout=ANSWER_SECONDS)
    except EntryNotFoundError:
        return  # the repository is there, without this file
    except HFValidationError as error:
        raise FimError(f"The {what} {place} is neither a folder nor a hub id. Give a folder or a hub id.") from error
    except OfflineModeIsEnabled as error:
        raise FimError(
            f"The {what} {place} is not in this machine's cache, and HF_HUB_OFFLINE is set. Give a folder, or unset it."
        ) from error
    # Errors of the hub and of the network have no narrower common class.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise FimError(
            f"The {what} {place} is not in this machine's cache, and the hub does not provide it: {reason}. "
            f"Give a folder, or the id of a {what} that you have access to."
        ) from error


def local_file(place: str, name: str) -> Path | None:
    """A file of a folder, or of a hub's repository that is cached here; None if there is none."""
    folder = Path(place).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(place, name)
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Disable the progress bars of transformers, which fill logs."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
