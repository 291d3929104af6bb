"""A cluster on this machine: a head and three workers with a network, names, processes, mounts, sshd and Slurm of their own.

Each host has its own network, UTS, mount and PID namespace. They share the file system, as machines of a cluster share a
network file system, except for the folders that belong to a host: /run, /dev/shm, /etc/slurm, /root/.ssh and /etc/hosts.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from fim_core.process_group import Successor

PACKAGES = {
    "ip": "iproute2",
    "pdsh": "pdsh",
    "sshd": "openssh-server",
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "munged": "munge",
    "mpirun": "openmpi-bin",
}
"""Debian's package of each program that the cluster needs."""

HEAD = "head"
WORKERS = ("worker-1", "worker-2", "worker-3")
HOSTS = (HEAD, *WORKERS)
GPU_WORKER = "worker-3"
"""The worker for which Slurm counts a GPU, which does not exist."""

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_CLONE_NEWNET = 0x40000000

_INIT = """
set -e
hostname "$NAME"
mount --bind "$ROOT/hosts" /etc/hosts
# `ip netns exec` has mounted a /sys without control groups, which slurmd looks for.
for folder in /run /dev/shm /sys/fs/cgroup; do mount -t tmpfs tmpfs $folder; done
for folder in /root/.ssh /etc/slurm; do mkdir -p $folder; mount --bind "$ROOT$folder" $folder; done
mkdir -p /run/sshd /run/munge /run/slurm
chmod 755 /run/munge
/usr/sbin/sshd -f "$ROOT/sshd_config" -E "$ROOT/$NAME/sshd.log"
/usr/sbin/munged --force --key-file="$ROOT/munge.key" --log-file="$ROOT/$NAME/munged.log" \\
    --seed-file="$ROOT/$NAME/munge.seed" --pid-file=/run/munge/munged.pid
if [ "$NAME" = head ]; then /usr/sbin/slurmctld -i; else /usr/sbin/slurmd -N "$NAME"; fi
touch "$ROOT/$NAME/ready"
while :; do sleep 3600 & wait $!; done
"""

_REMOVE_NETWORKS = 'for name in $(ip netns list | cut -d " " -f 1 | grep "^$1"); do ip netns del $name; done'

_SSHD_CONFIG = """
HostKey {root}/host_key
AuthorizedKeysFile {root}/root/.ssh/key.pub
PermitRootLogin yes
StrictModes no
UsePAM no
PidFile /run/sshd.pid
MaxStartups 100
"""

_SSH_CONFIG = """
Host *
    IdentityFile {root}/root/.ssh/key
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
"""

_SLURM_CONF = """
ClusterName=fim
SlurmctldHost=head
SlurmUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
StateSaveLocation={root}/slurmctld
SlurmdSpoolDir={root}/%n/slurmd
SlurmctldPidFile=/run/slurm/slurmctld.pid
SlurmdPidFile=/run/slurm/slurmd.pid
SlurmctldLogFile={root}/head/slurmctld.log
SlurmdLogFile={root}/%n/slurmd.log
JobCompType=jobcomp/none
SchedulerParameters=bf_interval=1
GresTypes=gpu
NodeName=worker-[1-2] CPUs={cores} State=UNKNOWN
NodeName={gpu_worker} CPUs={cores} Gres=gpu:1 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


def missing_packages() -> list[str]:
    """Debian's packages that the cluster needs and this machine lacks."""
    search = os.environ["PATH"] + ":" + SYSTEM_PATH
    return sorted({package for program, package in PACKAGES.items() if not shutil.which(program, path=search)})


def why_not() -> str | None:
    """Why this machine cannot have the cluster; None if it can."""
    if os.geteuid() != 0:
        return "namespaces of hosts need root"
    if missing := missing_packages():
        return f"missing packages: apt-get install {' '.join(missing)}"
    trial = f"fim-trial-{secrets.token_hex(3)}"
    for command in (
        ["ip", "netns", "add", trial],
        ["ip", "-n", trial, "link", "add", "bridge", "type", "bridge"],
        ["ip", "-n", trial, "link", "add", "one", "type", "veth", "peer", "name", "other"],
        ["unshare", "--mount", "--uts", "--pid", "--fork", "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
        ["ip", "netns", "del", trial],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            subprocess.run(["ip", "netns", "del", trial], capture_output=True)
            return f"`{' '.join(command)}` failed: {done.stderr.strip()}"
    return None


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Wait until a condition holds.

    Raises:
        TimeoutError: it does not in that time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not in {seconds:g} s: {what}")
        time.sleep(0.05)


class Cluster:
    """The running hosts; as a context manager, it removes them on exit."""

    def __init__(self, root: Path) -> None:
        """Start all hosts.

        Args:
            root: an empty folder for their files.
        """
        self.root = root
        self._tag = f"fim{secrets.token_hex(3)}"
        self._init: dict[str, subprocess.Popen[bytes]] = {}
        self._successor = Successor(_REMOVE_NETWORKS, self._tag)
        try:
            self._write_files()
            self._run("ip", "netns", "add", self._tag)
            self._run("ip", "-n", self._tag, "link", "add", "bridge", "type", "bridge")
            self._run("ip", "-n", self._tag, "link", "set", "bridge", "up")
            for host in HOSTS:
                self.start(host)
            self.wait_until_idle()
        except BaseException:
            self.close()
            raise

    def _run(self, *command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def _write_files(self) -> None:
        for folder in ("root/.ssh", "etc/slurm", "slurmctld", *(f"{host}/slurmd" for host in HOSTS)):
            (self.root / folder).mkdir(parents=True)
        for key in ("host_key", "root/.ssh/key"):
            self._run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.root / key))
        (self.root / "munge.key").write_bytes(secrets.token_bytes(64))
        (self.root / "munge.key").chmod(0o400)
        values = {"root": self.root, "cores": os.cpu_count(), "gpu_worker": GPU_WORKER}
        for name, text in {
            "hosts": "127.0.0.1 localhost\n" + "".join(f"{self.address(host)} {host}\n" for host in HOSTS),
            "sshd_config": _SSHD_CONFIG,
            "root/.ssh/config": _SSH_CONFIG,
            "etc/slurm/slurm.conf": _SLURM_CONF,
            "etc/slurm/cgroup.conf": "CgroupPlugin=cgroup/v1\n",
            "etc/slurm/gres.conf": f"NodeName={GPU_WORKER} Name=gpu File=/dev/zero\n",
        }.items():
            (self.root / name).write_text(text.format(**values))

    @staticmethod
    def address(host: str) -> str:
        """IP address of a host."""
        return f"10.77.0.{10 + HOSTS.index(host)}"

    def start(self, host: str) -> None:
        """Boot a host and wait for its services."""
        (self.root / host / "ready").unlink(missing_ok=True)
        network = f"{self._tag}-{host}"
        self._run("ip", "netns", "add", network)
        self._run("ip", "-n", self._tag, "link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", network)
        self._run("ip", "-n", self._tag, "link", "set", host, "master", "bridge", "up")
        self._run("ip", "-n", network, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            self._run("ip", "-n", network, "link", "set", device, "up")
        # The host dies with this process.
        spaces = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "unshare",
            "--mount",
            "--uts",
            "--ipc",
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child",
        ]
        environment = {"PATH": SYSTEM_PATH, "HOME": "/root", "NAME": host, "ROOT": str(self.root)}
        with (self.root / host / "init.log").open("ab") as log:
            self._init[host] = subprocess.Popen(
                ["ip", "netns", "exec", network, *spaces, "bash", "-c", _INIT],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

        def is_ready() -> bool:
            if self._init[host].poll() is not None:
                raise RuntimeError(f"{host} does not start: {(self.root / host / 'init.log').read_text()}")
            return (self.root / host / "ready").exists()

        wait_for(is_ready, 20, f"{host} is ready")

    def stop(self, host: str) -> None:
        """Power a host off: its network goes first, so that other hosts do not notice the end of its processes."""
        self._run("ip", "-n", self._tag, "link", "del", host)
        process = self._init.pop(host)
        process.kill()
        process.wait()
        self._run("ip", "netns", "del", f"{self._tag}-{host}")

    def restart(self, host: str) -> None:
        """Boot a host that was powered off, and have Slurm forget the jobs that it had."""
        self.start(host)
        for state in ("DOWN", "RESUME"):
            self.output(HEAD, ["scontrol", "update", f"NodeName={host}", f"State={state}", "Reason=rebooted"])
        self.wait_until_idle()

    def wait_until_idle(self) -> None:
        """Wait until Slurm has no job and every worker is ready for one."""
        states = ["sinfo", "-h", "-N", "-o", "%T"]
        idle = ["idle"] * len(WORKERS)
        wait_for(
            lambda: not self.slurm_jobs() and self.output(HEAD, states).split() == idle, 60, "all workers are idle"
        )

    def command(self, host: str, command: Sequence[str]) -> list[str]:
        """A command line that runs a command on a host."""
        return ["nsenter", "-t", str(self._first(host)), "--mount", "--uts", "--ipc", "--net", "--pid", *command]

    def popen(
        self, host: str, command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path
    ) -> subprocess.Popen[bytes]:
        """Start a command on a host, with its output in a file."""
        # A shell has its background jobs ignore Ctrl-C.
        inside = ["env", "--default-signal=INT", "-C", str(folder), *command]
        with log.open("ab") as output:
            return subprocess.Popen(
                self.command(host, inside),
                env={"PATH": SYSTEM_PATH, "HOME": "/root", **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def output(self, host: str, command: Sequence[str]) -> str:
        """Standard output of a command on a host."""
        return self._run(*self.command(host, command))

    @contextmanager
    def network_of(self, host: str) -> Iterator[None]:
        """Let this thread use the network of a host."""
        with (
            open("/proc/thread-self/ns/net", "rb") as own,
            open(f"/proc/{self._first(host)}/ns/net", "rb") as other,
        ):
            _enter_network(other.fileno())
            try:
                yield
            finally:
                _enter_network(own.fileno())

    def slurm_jobs(self) -> list[str]:
        """State, name and nodes of each job that Slurm has, one that is completing included."""
        return self.output(HEAD, ["squeue", "-h", "-o", "%T %j %N"]).splitlines()

    def processes(self, hosts: Sequence[str] = HOSTS) -> dict[int, tuple[str, list[str]]]:
        """Host and command line of each process of this project on the hosts, by its id on this machine."""
        spaces = {os.readlink(f"/proc/{self._first(host)}/ns/pid"): host for host in hosts if host in self._init}
        found = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                host = spaces.get(os.readlink(f"/proc/{process.pid}/ns/pid"))
                words = process.cmdline()
                if host and any("fim_core" in word or word.endswith("/fim") for word in words):
                    found[process.pid] = (host, words)
        return found

    def _first(self, host: str) -> int:
        """Id, on this machine, of the first process of a host."""
        [child] = psutil.Process(self._init[host].pid).children()
        return child.pid

    def close(self) -> None:
        """Power all hosts off, and remove their networks."""
        for process in self._init.values():
            process.kill()
            process.wait()
        self._init.clear()
        subprocess.run(["sh", "-c", _REMOVE_NETWORKS, "sh", self._tag], check=True)
        self._successor.dismiss()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _enter_network(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns failed")


def kill(pid: int) -> None:
    """SIGKILL a process, if it still runs."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    print(*missing_packages())
