"""Why a pod does not run: its image, its node, its volumes, or its namespace."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kubernetes.client import CoreV1Event, V1Job, V1Pod

_HOPELESS = {
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
}
"""Reasons of a waiting container that do not go away by themselves, except when a registry fails for a moment."""


@dataclass(frozen=True)
class Waiting:
    """Why a pod waits.

    Attributes:
        hopeless: whether waiting longer is unlikely to help.
    """

    reason: str
    hopeless: bool = False


def why_waiting(pod: V1Pod, events: Iterable[CoreV1Event]) -> Waiting | None:
    """Why a pod does not run; None if it runs or has ended, or if nothing is known yet.

    Args:
        events: of the pod; they alone tell about volumes that cannot be mounted.
    """
    if pod.status.phase != "Pending":
        return None
    name = pod.metadata.name
    for container in [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]:
        waiting = container.state.waiting if container.state else None
        if waiting is not None and waiting.reason in _HOPELESS:
            return Waiting(_sentence(f"Pod {name}: {waiting.reason}", waiting.message), hopeless=True)
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return Waiting(_sentence(f"Pod {name}: {condition.reason}", condition.message))
    return _last_warning(f"Pod {name}", events)


def why_no_pods(job: V1Job, events: Iterable[CoreV1Event]) -> Waiting | None:
    """Why a Job has no pods yet: it is suspended, or its namespace refuses them; None if nothing is known yet.

    Args:
        events: of the Job.
    """
    name = job.metadata.name
    if job.spec.suspend:
        return Waiting(f"Job {name} is suspended; a queue such as Kueue starts it when there is room.")
    return _last_warning(f"Job {name}", events)


def _last_warning(whose: str, events: Iterable[CoreV1Event]) -> Waiting | None:
    warnings = [event for event in events if event.type == "Warning"]
    return Waiting(_sentence(f"{whose}: {warnings[-1].reason}", warnings[-1].message)) if warnings else None


def _sentence(what: str, message: str | None) -> str:
    return f"{what}: {' '.join(message.split())}" if message else what
