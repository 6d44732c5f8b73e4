"""The simulated cluster as the tests see it: Slurm's commands, and the sockets of the VMMs."""

import contextlib
import http.client
import json
import os
import pathlib
import re
import shlex
import signal
import socket
import subprocess
import time

PROJECT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = PROJECT / "scripts/cluster"
# The states in which a job of Slurm does not change any more.
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
ON_HOST = "/etc/slurm/jobs/on-host.sh"


class Failure(Exception):
    """Something is not as it has to be."""


def expect(condition, what):
    if not condition:
        raise Failure(what)


def wait_for(what, seconds, found, pause=0.1):
    """Returns what `found` returns as soon as that is true."""
    end = time.monotonic() + seconds
    while True:
        value = found()
        if value:
            return value
        if time.monotonic() > end:
            raise Failure(f"{what}: not within {seconds} s")
        time.sleep(pause)


class Unix(http.client.HTTPConnection):
    """A connection with a socket that is a file."""

    def __init__(self, path):
        super().__init__("mkvmm", timeout=20)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Cluster:
    def __init__(self, place, mkvmm):
        self.place = pathlib.Path(place)
        self.mkvmm = mkvmm

    def script(self, *words, timeout=120, check=True, **more):
        command = [str(SCRIPT), "--dir", str(self.place), *map(str, words)]
        done = subprocess.run(
            command, timeout=timeout, stdin=subprocess.DEVNULL, capture_output=True, text=True, **more
        )
        if check and done.returncode != 0:
            raise Failure(f"{shlex.join(command)}: status {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def up(self, count, granules):
        self.script("up", count, "--granules", granules, "--mkvmm", self.mkvmm, timeout=300)
        self.hosts = [f"n{number}" for number in range(1, count + 1)]
        self.granules = granules

    def down(self):
        self.script("down", timeout=240)

    # Commands.

    def on(self, host, *words, **more):
        """Runs a command as root on a host, and returns what it prints."""
        return self.script("on", host, *words, **more).stdout

    def as_user(self, user, *words, **more):
        return self.script("as", user, *words, **more).stdout

    def sbatch(self, user, *words, script=ON_HOST, arguments=()):
        """Submits a job, and returns its number."""
        return int(self.as_user(user, "sbatch", "--parsable", *words, script, *arguments))

    def scontrol(self, *words):
        return self.on("ctl", "timeout", "30", "scontrol", *words)

    def node(self, host):
        """Returns what Slurm knows of a host, by its keys."""
        line = self.scontrol("show", "node", "-o", "-d", host)
        return dict(re.findall(r"(\w+)=(.*?)(?=\s+\w+=|$)", line.strip()))

    def used_by_slurm(self):
        """Returns the number of granules that Slurm has given away, by host."""
        lines = self.scontrol("show", "node", "-o", "-d").splitlines()
        found = (re.search(r"NodeName=(\w+).*GresUsed=granule:(\d+)", line) for line in lines)
        return {it[1]: int(it[2]) for it in found if it}

    def jobs(self):
        """Returns all jobs of the queue that have not ended: number -> (state, host, reason)."""
        lines = self.on("ctl", "squeue", "--noheader", "--format", "%i|%T|%N|%r").splitlines()
        rows = (line.split("|") for line in lines)
        return {int(row[0]): (row[1], row[2], row[3]) for row in rows}

    def job(self, number):
        line = self.scontrol("show", "job", "-o", str(number))
        return dict(re.findall(r"(\w+)=(.*?)(?=\s+[\w/:]+=|$)", line.strip()))

    def account(self, number, seconds=60):
        """Returns the rows of a job in the accounts, once they do not change any more."""

        def rows():
            fields = "JobID,State,ExitCode,DerivedExitCode,TotalCPU,CPUTimeRAW,NodeList"
            text = self.on("ctl", "sacct", "-a", "-n", "-P", "-j", str(number), "-o", fields)
            found = {}
            for line in text.splitlines():
                row = dict(zip(fields.split(","), line.split("|")))
                found[row["JobID"]] = row
            final = found and all(row["State"].split()[0] in FINAL for row in found.values())
            return found if final and f"{number}.batch" in found else None

        # A job that is cancelled has its state before its processes have ended.
        wait_for(f"the end of job {number}", seconds, lambda: number not in self.jobs(), 0.2)
        return wait_for(f"the accounts of job {number}", seconds, rows, 0.3)

    def wait_for_jobs(self, state, numbers, seconds):
        """Waits until all these jobs are in a state of the queue; returns the queue."""

        def found():
            queue = self.jobs()
            return queue if all(queue.get(it, ("",))[0] == state for it in numbers) else None

        return wait_for(f"jobs {numbers} {state}", seconds, found, 0.2)

    def home(self, user):
        return self.place / "home" / user

    def output(self, user, number):
        with contextlib.suppress(FileNotFoundError):
            return (self.home(user) / f"slurm-{number}.out").read_text(errors="replace")
        return ""

    def result(self, user, number):
        """Returns the result file of a job, or `None` if the command was killed."""
        text = (self.home(user) / f"result-{number}.json").read_text()
        return json.loads(text) if text else None

    # The VMMs, asked from outside, whatever the network of their host does.

    def first_process(self, host):
        return int((self.place / "hosts" / host / "pid").read_text())

    def ask(self, host, path, method="GET"):
        """Asks the VMM of a host; returns `None` if there is none."""
        connection = Unix(f"/proc/{self.first_process(host)}/root/run/mkvmm.sock")
        try:
            connection.request(method, path)
            response = connection.getresponse()
            body = response.read()
            if response.status >= 400:
                return None
            return json.loads(body) if body else {}
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def used(self, host):
        """Returns the number of granules that the pool of a host has given away."""
        capacity = self.ask(host, "/v1/capacity")
        return None if capacity is None else capacity["granules"] - capacity["free"]

    def guests(self, host):
        """Returns the states of a host's guests by their names."""
        return {it["name"]: it["state"] for it in self.ask(host, "/v1/instances") or []}

    def states(self, name):
        """Returns the state of a guest on each host that has it."""
        found = ((host, self.guests(host)) for host in self.hosts)
        return {host: guests[name] for host, guests in found if name in guests}

    def wait_for_guest(self, number, state="active", seconds=60):
        """Waits until the guest of a job has a state somewhere; returns its host."""

        def found():
            states = self.states(f"job{number}")
            return next((host for host, it in states.items() if it == state), None)

        return wait_for(f"the guest of job {number} is {state}", seconds, found)

    def processes(self, host):
        """Returns the command lines of a host's processes, by their numbers here."""
        group = f"mkvmm-cluster{str(self.place).replace('/', '-')}/{host}"
        numbers = set()
        for file in pathlib.Path("/sys/fs/cgroup/freezer", group).rglob("cgroup.procs"):
            with contextlib.suppress(OSError):
                numbers.update(map(int, file.read_text().split()))
        found = {}
        for number in numbers:
            with contextlib.suppress(OSError):
                line = pathlib.Path("/proc", str(number), "cmdline").read_bytes()
                found[number] = line.decode(errors="replace").replace("\0", " ").strip()
        return found

    def process(self, host, pattern):
        """Returns the number of the process whose command line matches."""
        found = [it for it, line in self.processes(host).items() if re.search(pattern, line)]
        expect(len(found) == 1, f"{len(found)} processes on {host} are {pattern}")
        return found[0]

    def restore(self):
        """Heals what a case that has failed has left, for the next one."""
        for host in self.hosts:
            self.script("heal", host)
            if self.ask(host, "/v1/health") is None:
                self.script("serve", host)
            with contextlib.suppress(Failure):
                self.scontrol("update", f"nodename={host}", "state=resume")
        self.settle(180)
        return "the hosts are idle and empty again"

    def kill(self, process):
        os.kill(process, signal.SIGKILL)

    def settle(self, seconds=120):
        """Ends all jobs, and waits until all hosts are empty and idle."""
        self.on("ctl", "scancel", "--full", "--user=ada")
        self.on("ctl", "scancel", "--full", "--user=bob")

        def empty():
            used = [self.used(host) for host in self.hosts]
            lines = self.on("ctl", "sinfo", "-N", "-h", "-o", "%t").split()
            return not any(used) and None not in used and set(lines) == {"idle"} and not self.jobs()

        wait_for("all hosts are idle and empty", seconds, empty, 0.3)
