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
    """`type: ray`: all ranks on one machine of a Ray cluster that shares the storage folder."""

    type: Literal["ray"]
    address: str | None = Field(
        None, description="Ray's dashboard, such as http://head:8265. Default: $RAY_ADDRESS, or Ray on this machine."
    )
    num_gpus: float = Field(0, ge=0, description="GPUs to reserve for the job; its ranks see no others.")
    num_cpus: float = Field(0, ge=0, description="CPU cores to reserve for the job.")
    resources: dict[str, float] = Field({}, description="Custom Ray resources to reserve for the job.")
    python: str = Field("python", description="Python interpreter on the cluster that has this package installed.")
    runtime_env: dict[str, Any] = Field(
        {}, description="Ray runtime environment of the job: env_vars, pip, container, …"
    )

    def world_size(self) -> int:
        """Number of ranks: without `num_processes`, one per GPU of the job."""
        return self.num_processes or max(1, int(self.num_gpus))


class KubernetesLauncher(LauncherSection):
    """`type: kubernetes`: all ranks in one pod of a Kubernetes Job; started from Dagster."""

    type: Literal["kubernetes"]
    image: str = Field(min_length=1, description="Container image that has this package installed.")
    volume_claim: str = Field(
        min_length=1, description="Persistent volume claim (ReadWriteMany) that holds the storage folder."
    )
    mount_path: str = Field(
        pattern="^/", description="Mount path of the claim; the same in the pod and where Dagster runs."
    )
    namespace: str = Field("default", description="Namespace of the Job.")
    context: str | None = Field(
        None,
        description="kubeconfig context. Default: the cluster that Dagster runs in, else the current context.",
    )
    num_gpus: int = Field(0, ge=0, description="GPUs of the pod (nvidia.com/gpu).")
    cpus: str | None = Field(None, description="CPU request of the pod, such as 8 or 500m.")
    memory: str | None = Field(None, description="Memory request and limit of the pod, such as 64Gi.")
    node_selector: dict[str, str] = Field({}, description="Labels of the nodes that the pod may run on.")
    pod_spec: dict[str, Any] = Field(
        {}, description="Further fields of the pod specification, in snake_case: tolerations, service_account_name, …"
    )

    def world_size(self) -> int:
        """Number of ranks: without `num_processes`, one per GPU of the pod."""
        return self.num_processes or max(1, self.num_gpus)


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
