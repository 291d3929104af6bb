"""The interface of a store."""

from __future__ import annotations

from fim_core.store import attempts as _attempts
from fim_core.store import drafts as _drafts
from fim_core.store import links as _links
from fim_core.store import publish as _publish
from fim_core.store import removal as _removal
from fim_core.store import versions as _versions
from fim_core.store.places import StoreFolder


class Store(StoreFolder):
    """The folder of all artifacts. Safe against kills at any moment and against two writers of one version.

    Each method is a function of the module that owns its concept.
    """

    find = _versions.find
    versions = _versions.versions
    unreadable = _versions.unreadable

    current = _links.current
    find_current = _links.find_current
    use = _links.use
    links = _links.linked_artifacts
    links_by_experiment = _links.links_by_experiment
    repair_current = _links.repair_current

    publish = _publish.publish
    drafts = _drafts.drafts

    making = _attempts.making
    is_being_made = _attempts.is_being_made
    work_folder = _attempts.work_folder
    work_folders = _attempts.work_folders
    clear_work = _attempts.clear_work

    remove = _removal.remove
    remove_file = _removal.remove_file
    may_remove = _removal.may_remove
    forget_checks = _removal.forget_checks
