"""Two users on one host, each with a guest."""

import re

from hosts import PROJECT, expect, wait_for

INTRUDER = PROJECT / "tests/cluster/jobs/intruder.sh"
# What the other user may do: what concerns nobody else.
OWN = {"list the own guests", "run an own guest"}
ATTEMPTS = 33


def two_users(cluster):
    """A user in a job of their own cannot reach the guest of another on the same host."""
    number = cluster.sbatch("ada", "--mem=8M", arguments=("probe", "shell"))
    host = cluster.wait_for_guest(number)
    # As the processes of the host see each other.
    inside = {}
    for key, pattern in [("worker", f"^mkvmm-worker: job{number}"), ("client", f"^mkvmm run .*name=job{number},")]:
        inside[key] = cluster.on(host, "pgrep", "-f", pattern).split()[0]
    arguments = (f"job{number}", inside["worker"], inside["client"], str(number))
    other = cluster.sbatch("bob", "-w", host, "--mem=8M", "-t", "5", script=INTRUDER, arguments=arguments)
    wait_for("the other's job", 120, lambda: other not in cluster.jobs())
    told = cluster.output("bob", other)
    could = set(re.findall(r"^could: (.*)$", told, re.M))
    could_not = re.findall(r"^could not: (.*)$", told, re.M)
    expect(could == OWN, f"bob could {could}; {told}")
    expect(len(could) + len(could_not) == ATTEMPTS, f"{len(could) + len(could_not)} attempts: {told}")
    guest = cluster.ask(host, f"/v1/instances/job{number}")
    expect((guest["state"], guest["owner"]) == ("active", 7101), f"{guest}")
    # Names of guests are in the command lines, which everybody can read.
    cluster.settle()
    return f"{len(could_not)} attempts refused"
