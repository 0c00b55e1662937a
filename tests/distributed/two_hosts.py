"""Two hosts on one machine: network namespaces of iproute2, with a link between them that can be cut."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys

ADDRESSES = {"a": "10.77.0.1", "b": "10.77.0.2"}
# iproute2 separates networks alone: the name of a host takes a namespace of its own.
_NAMED = 'echo host-$0 > /proc/sys/kernel/hostname && exec "$@"'


def missing():
    """Why this machine cannot make them, or an empty text."""
    if not (shutil.which("ip") and shutil.which("unshare")):
        return "iproute2 or unshare is not installed"
    name = f"metakm-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"network namespaces may not be made: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return ""


class TwoHosts:
    """Hosts a and b, called host-a and host-b."""

    def __init__(self, name):
        self.spaces = {host: f"{name}-{host}" for host in ADDRESSES}

    def torchrun(self, host, *arguments):
        """Start torchrun with one process on a host, beside the other's; what it prints is one stream."""
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        meeting = ["--master-addr", ADDRESSES["a"], "--node-rank", str(int(host == "b"))]
        inside = ["ip", "netns", "exec", self.spaces[host], "unshare", "--uts", "sh", "-c", _NAMED, host]
        return subprocess.Popen(
            [*inside, *launcher, *meeting, *arguments],
            env={**os.environ, "GLOO_SOCKET_IFNAME": "wire"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def kill(self, process):
        """End a torchrun that is still there, and all else on the hosts."""
        for space in self.spaces.values():
            there = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True).stdout
            for number in there.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(number), signal.SIGKILL)
        process.wait()
        process.stdout.close()

    def cut(self, host="b"):
        """Cut the link at one end."""
        self._ip(host, "link", "set", "wire", "down")

    def _ip(self, host, *arguments):
        subprocess.run(["ip", "-n", self.spaces[host], *arguments], check=True)

    def connect(self):
        """Make the link."""
        one, other = self.spaces.values()
        pair = ["type", "veth", "peer", "name", "wire", "netns", other]
        subprocess.run(["ip", "link", "add", "wire", "netns", one, *pair], check=True)
        for host, address in ADDRESSES.items():
            self._ip(host, "address", "add", f"{address}/24", "dev", "wire")
            for device in ("lo", "wire"):
                self._ip(host, "link", "set", device, "up")


@contextlib.contextmanager
def two_hosts(name):
    """The hosts, while the block runs."""
    hosts = TwoHosts(name)
    made = []
    try:
        for space in hosts.spaces.values():
            subprocess.run(["ip", "netns", "add", space], check=True)
            made.append(space)
        hosts.connect()
        yield hosts
    finally:
        for space in made:
            subprocess.run(["ip", "netns", "del", space], check=True)
