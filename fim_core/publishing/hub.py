"""Publishing to a model repository of the Hugging Face hub, whose branch `main` is the champion.

Each publication is one commit: the model's files and champion.json appear together.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fim_core.config.publishing import HubTarget
from fim_core.errors import FimError, reason_of
from fim_core.publishing.release import RECORD, Release, require_same_experiment


def publish_to_hub(release: Release, target: HubTarget) -> bool:
    """Make a release the content of a repository, which is created if missing; returns whether anything had to be changed.

    Raises:
        FimError: the hub cannot be reached, the token does not allow it, or the repository belongs to another experiment.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        record = _read_record(api, target.repo)
        require_same_experiment(record, release, target.place)
        if record == release.record:
            return False
        api.create_repo(target.repo, private=target.private, exist_ok=True)
        api.create_commit(
            target.repo,
            operations(release, record),
            commit_message=f"Champion {release.name} of {release.record['experiment']}",
        )
    # Errors of the hub and of the network have no narrower common class.
    except Exception as error:
        if isinstance(error, FimError):
            raise
        raise FimError(
            f"The hub does not accept {target.repo} ({reason_of(error)}). Run `hf auth login` with a token that may write, or "
            "set HF_TOKEN."
        ) from error
    return True


def operations(release: Release, record: Any) -> list[Any]:
    """The parts of the commit: all files, the record, and the removal of files that only the last release had.

    Args:
        record: champion.json of the last release, or None. Files that it does not list are not touched.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    files = [CommitOperationAdd(file, str(release.folder / file)) for file in release.files]
    content = (json.dumps(release.record, indent=2) + "\n").encode()
    stale = sorted(set(record["files"]) - set(release.files)) if record else []
    return [*files, CommitOperationAdd(RECORD, content), *map(CommitOperationDelete, stale)]


def _read_record(api: Any, repo: str) -> Any:
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    with TemporaryDirectory(prefix="fim-hub-") as folder:
        try:
            path = api.hf_hub_download(repo, RECORD, local_dir=folder)
        except (EntryNotFoundError, RepositoryNotFoundError):
            return None
        return json.loads(Path(path).read_text(encoding="utf-8"))
