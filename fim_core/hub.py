"""Loading of models and tokenizers: is one where an experiment says, and no progress bars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fim_core.errors import FimError

_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
ANSWER_SECONDS = 10.0


def require_place(place: str, what: str) -> None:
    """Go on if `place` is a folder, or something on the hub that is cached here or that the hub has for us.

    The libraries that load it would ask an unreachable hub six times, and say so each time.

    Args:
        place: a path or a hub id.
        what: `model` or `tokenizer`, for the message.

    Raises:
        FimError: it is neither; why, and what to give.
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
    # The hub's answers and what a network does have no common class but this.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise FimError(
            f"The {what} {place} is not in this machine's cache, and the hub does not give it: {reason}. "
            "Give a folder, or the id of one that you may read."
        ) from error


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing bars, which fill logs."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
