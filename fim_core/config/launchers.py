"""Section `launcher`: where training processes run. Each type accepts its own options only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, core_schema

from fim_core.config.base import PathOrId, Section
from fim_core.config.hostfile import in_allocation, read_hostfile, slots_of_allocation
from fim_core.device import device_type, gpus


class LauncherSection(Section):
    """Options that all launchers share."""

    type: str
    num_processes: int | None = Field(
        None, ge=1, description="Ranks per machine. Default: the number of its GPUs, or 1 without GPUs."
    )
    timeout_minutes: float | None = Field(
        None, gt=0, description="Maximum duration of a run, from the start of its ranks. Default: no limit."
    )
    heartbeat_timeout_minutes: float = Field(
        30.0, gt=0, description="End a run whose heartbeat has stopped for this long."
    )

    def world_size(self) -> int:
        """Number of ranks of a run, on all machines.

        Raises:
            FimError: it is written down elsewhere, and cannot be read there.
        """
        return self.num_processes or 1


class LocalLauncher(LauncherSection):
    """`type: local`: one process per rank on this machine."""

    type: Literal["local"] = "local"

    def world_size(self) -> int:
        """Number of ranks."""
        return self.num_processes or (gpus() if device_type() == "cuda" else 1)


class HostfileLauncher(LauncherSection):
    """`type: hostfile`: several machines, through pdsh, Slurm or OpenMPI; they share the storage folder."""

    type: Literal["hostfile"]
    hostfile: PathOrId | None = Field(
        None,
        description="File with lines `host slots=N`, as DeepSpeed reads them; rank 0 runs on the first host. Default: the "
        "nodes of the Slurm allocation that the run is started in.",
    )
    backend: Literal["pdsh", "slurm", "openmpi"] = Field("pdsh", description="Program that starts the ranks.")
    launcher_args: str = Field(
        "", description="Further arguments for pdsh, mpirun, sbatch, or srun inside an allocation, in one string."
    )
    host_timeout_seconds: float = Field(
        10.0, gt=3, description="End a run of which one host has shown no sign of life for this long."
    )

    @model_validator(mode="after")
    def _hosts_are_given(self) -> HostfileLauncher:
        if self.hostfile is None and self.backend != "slurm":
            raise ValueError(f"backend {self.backend} needs a hostfile")
        return self

    def world_size(self) -> int:
        """Number of ranks on all hosts."""
        if self.hostfile is not None:
            return sum(host.slots for host in read_hostfile(Path(self.hostfile), self.num_processes))
        return sum(slots_of_allocation(self.num_processes)) if in_allocation() else self.num_processes or 1


class RayLauncher(LauncherSection):
    """`type: ray`: on machines of a Ray cluster that share the storage folder."""

    type: Literal["ray"]
    num_nodes: int = Field(1, ge=1, description="Machines to train on. The resources below are those of each of them.")
    address: str | None = Field(
        None, description="Ray's dashboard, such as http://head:8265. Default: $RAY_ADDRESS, or Ray on this machine."
    )
    num_gpus: float = Field(0, ge=0, description="GPUs to reserve on a machine; its ranks see no others.")
    num_cpus: float = Field(0, ge=0, description="CPU cores to reserve on a machine.")
    resources: dict[str, float] = Field({}, description="Custom Ray resources to reserve on a machine.")
    python: str = Field("python", description="Python interpreter on the cluster that has this package installed.")
    runtime_env: dict[str, Any] = Field(
        {}, description="Ray runtime environment of the job: env_vars, pip, container, …"
    )

    def world_size(self) -> int:
        """Number of ranks on all machines: on each, without `num_processes`, one per GPU of the job there."""
        return self.num_nodes * (self.num_processes or max(1, int(self.num_gpus)))


class KubernetesLauncher(LauncherSection):
    """`type: kubernetes`: in one pod per machine of a Kubernetes Job; started from Dagster."""

    type: Literal["kubernetes"]
    image: str = Field(min_length=1, description="Container image that has this package installed.")
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = Field(
        None, description="When to pull the image. Default: as Kubernetes decides by its tag."
    )
    image_pull_secrets: list[str] = Field([], description="Secrets for the image's registry.")
    volume_claim: str = Field(
        min_length=1, description="Persistent volume claim (ReadWriteMany) that holds the storage folder."
    )
    mount_path: str = Field(
        pattern="^/", description="Mount path of the claim; the same in the pods and where Dagster runs."
    )
    namespace: str = Field("default", description="Namespace of the Job.")
    context: str | None = Field(
        None,
        description="kubeconfig context. Default: the cluster that Dagster runs in, else the current context.",
    )
    num_nodes: int = Field(1, ge=1, description="Pods to train in. The resources below are those of each of them.")
    num_gpus: int = Field(0, ge=0, description="GPUs of a pod.")
    gpu_resource: str = Field(
        "nvidia.com/gpu", description="Kubernetes' name of a GPU, such as nvidia.com/mig-1g.10gb."
    )
    cpus: str | None = Field(None, description="CPU request of a pod, such as 8 or 500m.")
    memory: str | None = Field(None, description="Memory request and limit of a pod, such as 64Gi.")
    shared_memory: str = Field("8Gi", description="Size limit of /dev/shm, which counts as memory of the pod.")
    env: dict[str, str] = Field({}, description="Environment variables, such as NCCL_DEBUG. For secrets, see below.")
    env_from_secrets: list[str] = Field(
        [], description="Secrets of the namespace whose entries become environment variables, such as HF_TOKEN."
    )
    labels: dict[str, str] = Field({}, description="Labels of Job and pods, such as kueue.x-k8s.io/queue-name.")
    annotations: dict[str, str] = Field({}, description="Annotations of Job and pods.")
    node_selector: dict[str, str] = Field({}, description="Labels of the nodes that the pods may run on.")
    security_context: dict[str, Any] = Field(
        {},
        description="Fields of the container's security context, in snake_case, in addition to those of the `restricted` "
        "Pod Security Standard: run_as_user, …",
    )
    pod_spec: dict[str, Any] = Field(
        {}, description="Further fields of the pod specification, in snake_case: tolerations, service_account_name, …"
    )
    pending_timeout_minutes: float | None = Field(
        60.0, gt=0, description="End a run whose pods have not all started for this long. null: wait without a limit."
    )

    def world_size(self) -> int:
        """Number of ranks in all pods: in each, without `num_processes`, one per GPU."""
        return self.num_nodes * (self.num_processes or max(1, self.num_gpus))


LAUNCHER_TYPES: dict[str, type[LauncherSection]] = {
    "local": LocalLauncher,
    "hostfile": HostfileLauncher,
    "ray": RayLauncher,
    "kubernetes": KubernetesLauncher,
}
"""Option class of each launcher, by its `type`."""


class _ByType:
    """Selects the option class by `type`."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.tagged_union_schema(
            {kind: handler.generate_schema(options) for kind, options in LAUNCHER_TYPES.items()},
            discriminator=_type_of,
            custom_error_type="launcher_type",
            custom_error_message=f"`type` is one of: {', '.join(LAUNCHER_TYPES)}",
        )


def _type_of(section: Any) -> str:
    return section.get("type", "local") if isinstance(section, dict) else getattr(section, "type", "local")


LauncherConfig = Annotated[LauncherSection, _ByType()]
