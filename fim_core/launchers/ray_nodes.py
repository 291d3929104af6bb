"""Driver of a Ray job that trains on several machines: `python -m fim_core.launchers.ray_nodes --nodes 2 …`.

A placement group reserves the resources of each machine, on different machines, all or nothing. On each of them a task
runs our launcher for one machine (`fim_core.launchers.remote`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from fim_core.errors import FimError
from fim_core.launchers.remote import LauncherFailure, launcher_command, record_launcher_failure
from fim_core.process_group import PARENT
from fim_core.training.job import Job

WAIT_NOTICE_SECONDS = 10.0
LOSS_SECONDS = 30.0
"""How long to wait, after a machine's ranks have failed, for the reason to show: Ray takes this long to miss a machine."""


def main() -> int:
    """Reserve the machines, run the launcher on each, and end when one fails. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--resources", type=json.loads, required=True, help="of each machine, as JSON")
    parser.add_argument("--job", type=Path, required=True)
    parser.add_argument("--directory", required=True)
    arguments = parser.parse_args()
    try:
        job = Job.read(arguments.job)
    except (OSError, FimError) as error:
        print(error, file=sys.stderr)
        return 1
    import ray

    ray.init(log_to_driver=False)
    group = reserve(arguments.nodes, arguments.resources, job)
    return run_nodes(job, group, arguments.nodes, arguments.resources, arguments.directory)


def reserve(nodes: int, resources: dict[str, float], job: Job) -> Any:
    """Reserve resources on so many different machines; returns the placement group once it has them.

    The wait is written to the launcher's log, which the follower shows.
    """
    import ray
    from ray.util.placement_group import placement_group

    # A bundle needs some resource.
    group = placement_group([resources or {"CPU": 0.001}] * nodes, strategy="STRICT_SPREAD")
    if not group.wait(WAIT_NOTICE_SECONDS):
        job.log_folder.mkdir(parents=True, exist_ok=True)
        with (job.log_folder / "launcher.log").open("a", encoding="utf-8") as log:
            log.write(f"Ray has no {nodes} machines with {json.dumps(resources)} free yet; waiting for them.\n")
        ray.get(group.ready())
    return group


def run_nodes(job: Job, group: Any, nodes: int, resources: dict[str, float], directory: str) -> int:
    """Run the launcher on every machine of a placement group. Returns 0 if all succeed."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    custom = {name: amount for name, amount in resources.items() if name not in {"CPU", "GPU"}}

    def on(index: int, function: Any) -> Any:
        options: Any = {
            "num_cpus": resources.get("CPU", 0),
            "num_gpus": resources.get("GPU", 0),
            "resources": custom,
            "max_retries": 0,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(group, index),
        }
        return ray.remote(**options)(function)

    hosts = ray.get([on(index, ray.util.get_node_ip_address).remote() for index in range(nodes)])
    command = [
        *launcher_command(sys.executable, nodes, hosts[0]),
        *("--job", str(job.work.job), "--directory", directory),
    ]
    tasks = {on(index, run_node).remote([*command, "--node", str(index)]): index for index in range(nodes)}
    codes: list[int] = []
    waiting = list(tasks)
    while waiting:
        done, waiting = ray.wait(waiting, timeout=LOSS_SECONDS if any(codes) else None)
        if not done:
            break
        try:
            codes += ray.get(done)
        except ray.exceptions.RayError as error:
            node = tasks[done[0]]
            print(error, file=sys.stderr)
            message = (
                f"Machine {hosts[node]}, {node} of 0 to {nodes - 1}, has left the Ray cluster, or Ray has killed its "
                "ranks. Training resumes from its newest state."
            )
            record_launcher_failure(job, "driver", LauncherFailure(False, message, lost_machine=True))
            return 1
    return 1 if any(codes) else 0


def run_node(command: list[str]) -> int:
    """Run the launcher of one machine, which dies with this process; returns its exit code."""
    return subprocess.call(command, env=os.environ | {PARENT: str(os.getpid())})


if __name__ == "__main__":
    sys.exit(main())
