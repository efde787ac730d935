"""A Slurm cluster on this machine, of Debian's packages munge and slurm-wlm: for tests.

    with cluster(nodes=2) as slurm:
        job = slurm.submit(script, "recipe.yaml", options=["--nodes=2"], cwd=folder)
        slurm.wait(job, "COMPLETED")

Each node is a slurmd of its own, with a port of its own and `GPUS` GPUs that are not there. A job
that is queued again waits for its credential to expire: 10 s here, two minutes by default. All
daemons run as the user who starts them, in the foreground, on the loopback, and end with the block.
Two partitions hold all nodes: a job in `urgent` preempts those in `batch`.
"""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("setpriv", "munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel")
GPUS = 2
GRACE = 60
"""Seconds between the signals of a preemption and the kill."""

CONFIG = """
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=5,bf_interval=5,batch_sched_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
GresTypes=gpu
KillWait=30
MinJobAge=3600
ReturnToService=2
"""


def missing() -> str | None:
    """Why no cluster can be started here; None if one can."""
    absent = [name for name in PROGRAMS if program(name) is None]
    return f"{', '.join(absent)}: not installed (apt install slurm-wlm munge)" if absent else None


def program(name: str) -> str | None:
    """The path of a program. Daemons may lie where only root looks."""
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with ExitStack() as held:
        found = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]


def write_config(folder: Path, names: Sequence[str]) -> None:
    """slurm.conf and gres.conf for these nodes."""
    host = socket.gethostname().partition(".")[0]
    control, *ports = free_ports(1 + len(names))
    # each node has all cores: they are shared, as they are on a machine with much to do
    cores = os.cpu_count() or 1
    lines = [CONFIG.format(host=host, control=control, folder=folder, user=getpass.getuser())]
    lines += [
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cores} "
        f"RealMemory=1000 Gres=gpu:{GPUS} State=UNKNOWN"
        for name, port in zip(names, ports, strict=True)
    ]
    common = f"Nodes={','.join(names)} MaxTime=60 State=UP"
    lines += [
        f"PartitionName=batch {common} Default=YES PriorityTier=1 GraceTime={GRACE}",
        f"PartitionName=urgent {common} PriorityTier=9 PreemptMode=OFF",
    ]
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
    # Slurm wants a device file for each GPU, and only looks whether it is there
    for number in range(GPUS):
        (folder / f"gpu{number}").touch()
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{GPUS - 1}]\n")


class Cluster:
    """A cluster that runs. Its configuration and the logs of its daemons are in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        self.environment["PATH"] = path

    def said(self, *command: str, cwd: Path | None = None) -> str:
        """What a command of Slurm prints. RuntimeError, with its words, if it fails."""
        done = subprocess.run(
            command, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=60
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def submit(self, script: Path, *arguments: str, options: Sequence[str], cwd: Path) -> str:
        """The number of the job."""
        return self.said("sbatch", "--parsable", *options, str(script), *arguments, cwd=cwd)

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job: JobState, Restarts, Reason, ExitCode, ..."""
        words = self.said("scontrol", "show", "job", "--oneliner", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, number: str, state: str, *, seconds: float = 240.0) -> dict[str, str]:
        """The job, once it is in this state. AssertionError if it ends in another, or too late."""
        deadline = time.monotonic() + seconds
        ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
        while (found := self.job(number))["JobState"] != state:
            assert found["JobState"] not in ended, found
            assert time.monotonic() < deadline, (state, found, self.logs())
            time.sleep(0.2)
        return found

    def logs(self) -> str:
        """The last lines of each daemon's log."""
        files = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {f.name}\n{f.read_text()[-1500:]}" for f in files)


@contextmanager
def cluster(*, nodes: int = 2) -> Iterator[Cluster]:
    """Starts a cluster of so many nodes (`node1`, ...) in a folder of its own."""
    # not in pytest's folder: the name of a Unix socket has 107 characters at most
    with tempfile.TemporaryDirectory(prefix="slurm-") as place, ExitStack() as daemons:
        folder = Path(place)
        (folder / "state").mkdir()
        names = [f"node{number}" for number in range(1, nodes + 1)]
        write_config(folder, names)
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o600)
        found = Cluster(folder)
        munge = {"key-file": key, "socket": folder / "munge.socket", "seed-file": folder / "seed"}
        munge |= {"pid-file": folder / "munge.pid", "log-file": folder / "munged.log"}
        options = [f"--{name}={value}" for name, value in munge.items()]
        daemons.enter_context(running(found, "munged", "--foreground", "--force", *options))
        wait_until(found, lambda: (folder / "munge.socket").exists())
        daemons.enter_context(running(found, "slurmctld", "-D", "-i"))
        for name in names:
            daemons.enter_context(running(found, "slurmd", "-D", "-N", name))
        wait_until(found, lambda: found.said("sinfo", "-h", "-o", "%T", "-p", "batch") == "idle")
        daemons.callback(stop_jobs, found)
        yield found


def stop_jobs(found: Cluster) -> None:
    """Cancels what still runs, and waits until it is gone."""
    for number in found.said("squeue", "-h", "-o", "%A").split():
        found.said("scancel", number)
    wait_until(found, lambda: not found.said("squeue", "-h", "-o", "%A"))


def wait_until(found: Cluster, ready: Callable[[], bool], *, seconds: float = 60.0) -> None:
    """Waits until `ready()` is true; a command that fails counts as not ready."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if ready():
                return
        except RuntimeError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"the cluster is not ready after {seconds:.0f} s\n{found.logs()}")


@contextmanager
def running(found: Cluster, name: str, *arguments: str) -> Iterator[None]:
    """A daemon in the foreground. Its words go into a log of the cluster's folder."""
    count = len(list(found.folder.glob(f"{name}*.log")))
    path = program(name)
    assert path is not None
    with (found.folder / f"{name}-{count}.log").open("w") as log:
        # its own group, because a Ctrl-C at a test must not end it before its jobs; and it ends with
        # us, even if we are killed
        command = ["setpriv", "--pdeathsig", "TERM", path, *arguments]
        daemon = subprocess.Popen(
            command, env=found.environment, stdout=log, stderr=log, process_group=0
        )
        try:
            yield
        finally:
            daemon.terminate()
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
