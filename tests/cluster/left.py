"""What a cluster may not leave on this machine."""

import pathlib
import subprocess

SCRIPT = str(pathlib.Path(__file__).resolve().parents[2] / "scripts/cluster")
PROGRAMS = {"munged", "slurmd", "slurmctld", "slurmdbd", "slurmstepd", "mariadbd"}


def enabled():
    """Returns the services that start with this machine."""
    wants = pathlib.Path("/etc/systemd/system").glob("*.wants/*")
    scripts = (it for level in "2345" for it in pathlib.Path(f"/etc/rc{level}.d").glob("S*"))
    return {str(it) for it in (*wants, *scripts)}


class Machine:
    """The parts of a cluster below `place` that exist, and what existed before it."""

    def __init__(self, place):
        self.place = str(place)
        self.enabled = enabled()
        self.programs = self.running()
        self.links = self.network()

    @staticmethod
    def running():
        """Returns the processes of the cluster's programs, by their numbers."""
        found = {}
        for process in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                name = (process / "comm").read_text().strip()
            except OSError:
                continue
            if name in PROGRAMS:
                found[process.name] = name
        return found

    @staticmethod
    def network():
        told = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, timeout=20, check=True)
        return {line.split(": ")[1].split("@")[0] for line in told.stdout.splitlines()}

    def left(self):
        """Returns what is there and was not before, each as a text."""
        found = []
        if pathlib.Path(self.place).exists():
            found.append(f"the directory {self.place}")
        for process in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
                where = str((process / "root").readlink())
                executable = str((process / "exe").readlink())
            except OSError:
                continue
            if executable.startswith(self.place + "/") or {self.place.encode(), SCRIPT.encode()} <= set(words):
                found.append(f"process {process.name}: {executable} in {where}")
        found += [f"process {it}: {name}" for it, name in self.running().items() if it not in self.programs]
        # A namespace lives as long as its processes, or a mount of it.
        mounts = pathlib.Path("/proc/self/mountinfo").read_text().splitlines()
        found += [f"mount: {line}" for line in mounts if self.place in line or "/run/netns/mkvmm" in line]
        group = f"mkvmm-cluster{self.place.replace('/', '-')}"
        groups = pathlib.Path("/sys/fs/cgroup").glob(f"*/{group}")
        found += [f"cgroup {it}" for it in (*groups, *pathlib.Path("/sys/fs/cgroup").glob(group))]
        found += [f"network device {it}" for it in self.network() - self.links if it.startswith("v-")]
        found += [f"enabled service {it}" for it in enabled() - self.enabled]
        return found
