"""A real SLURM of this user's own: munge, one controller, one node, all on loopback and in one folder."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
ACCOUNTING_COMMANDS = ("slurmdbd", "sacct", "sacctmgr", "mariadbd", "mariadb-install-db")
# Debian keeps daemons where the PATH of a user other than root does not lead.
SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
START_SECONDS = 60

CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=2000
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
CompleteWait=0
MessageTimeout=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=64000 State=UNKNOWN
PartitionName=normal Nodes=ALL Default=YES PriorityTier=1
PartitionName=grace Nodes=ALL PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=ALL PriorityTier=9 PreemptMode=OFF
"""

ACCOUNTING = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={database}
AccountingStoragePass={folder}/munge.socket
"""
DATABASE_CONF = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={database}
SlurmUser={user}
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mariadb}
StorageUser=root
StorageLoc=accounting
"""
MARIADB_FLAGS = ["--bind-address=127.0.0.1", "--innodb-flush-log-at-trx-commit=0", "--innodb-log-file-size=4M"]


def missing(commands=COMMANDS):
    """Those that this machine lacks."""
    return [name for name in commands if shutil.which(name, path=SEARCH) is None]


class Cluster:
    """Started in `folder`; with `accounting`, slurmdbd on MariaDB is too, and `sacct` works."""

    def __init__(self, folder, accounting=False):
        self.folder, self.accounting, self.daemons = folder, accounting, {}
        self.conf, self.host = folder / "slurm.conf", socket.gethostname().split(".")[0]
        self.environment = {**os.environ, "SLURM_CONF": str(self.conf)}
        names = ("controller", "node", "database", "mariadb")
        values = {"folder": folder, "host": self.host, "user": pwd.getpwuid(os.getuid()).pw_name}
        values |= dict(zip(names, free_ports(len(names)), strict=True))
        storage = ACCOUNTING if accounting else "AccountingStorageType=accounting_storage/none\n"
        (folder / "state").mkdir()
        (folder / "spool").mkdir()
        self.conf.write_text(f"{CONF}{storage}".format(**values))
        (folder / "slurmdbd.conf").write_text(DATABASE_CONF.format(**values))
        (folder / "slurmdbd.conf").chmod(0o600)
        self.mariadb_flags = [f"--port={values['mariadb']}", f"--user={values['user']}", *MARIADB_FLAGS]

    def start(self):
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        own = [f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        self.daemon("munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", *own)
        self.until(lambda: (self.folder / "munge.socket").exists())
        if self.accounting:
            self.start_accounting()
        self.start_controller()
        self.daemon("slurmd", "-D", "-f", str(self.conf))
        self.until(lambda: "idle" in self.ask("sinfo", "--noheader", "--format=%T"))

    def start_accounting(self):
        here = [f"--datadir={self.folder}/mariadb", *self.mariadb_flags]
        install = ["mariadb-install-db", "--no-defaults", "--auth-root-authentication-method=normal", *here]
        self.ask(*install)
        socket_file = self.folder / "mariadb.socket"
        self.daemon("mariadbd", "--no-defaults", f"--socket={socket_file}", *here)
        self.until(socket_file.exists)
        self.daemon("slurmdbd", "-D")
        self.until(lambda: "Cluster" in self.ask("sacctmgr", "show", "cluster"))

    def daemon(self, name, *arguments):
        program = shutil.which(name, path=SEARCH)
        log = (self.folder / f"{name}.out").open("ab")
        with log:
            self.daemons[name] = subprocess.Popen(
                [program, *arguments], stdout=log, stderr=log, env=self.environment, start_new_session=True
            )

    def end(self, name):
        process = self.daemons.pop(name)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def restart_controller(self, forget=False):
        """With `forget`, it knows no job any more, as after a job's `MinJobAge`."""
        self.end("slurmctld")
        if forget:
            for path in (self.folder / "state").glob("job_state*"):
                path.unlink()
        self.start_controller()

    def start_controller(self):
        self.daemon("slurmctld", "-D", "-f", str(self.conf))
        self.until(lambda: "PARTITION" in self.ask("sinfo"))

    def stop(self):
        self.ask("scancel", "--signal=KILL", "--full", f"--user={os.getuid()}")
        self.ask("scancel", f"--user={os.getuid()}")
        for name in reversed(tuple(self.daemons)):
            self.end(name)

    def ask(self, *command):
        """Its output, errors included."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def until(self, condition, seconds=START_SECONDS):
        """Wait for it, or fail with the daemons' logs."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.logs()
            time.sleep(0.1)

    def logs(self):
        found = sorted(self.folder.glob("*.log")) + sorted(self.folder.glob("*.out"))
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in found)


def free_ports(count):
    """Ports that nobody listens at now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
