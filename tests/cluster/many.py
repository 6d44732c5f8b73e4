"""The larger run, by hand: many guests at once on many hosts."""

import math
import pathlib
import time

from hosts import PROJECT, expect

LIGHT = PROJECT / "tests/cluster/jobs/light.sh"


def free_memory():
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) / 1048576
    return 0.0


def many(cluster, hosts, guests):
    """Starts `guests` guests at once on `hosts` hosts that have room for just as many."""
    before = free_memory()
    begun = time.monotonic()
    cluster.up(hosts, math.ceil(guests / hosts))
    up = time.monotonic() - begun
    print(f"many: {hosts} hosts are up after {up:.0f} s", flush=True)
    begun = time.monotonic()
    loop = f"for i in $(seq {guests}); do sbatch --parsable --gres=granule:1 {LIGHT} >/dev/null || exit 1; done"
    cluster.as_user("ada", "bash", "-c", loop, timeout=900)
    submitted = time.monotonic() - begun
    print(f"many: {guests} jobs are submitted after {submitted:.0f} s", flush=True)
    samples = 0
    while True:
        used = {host: cluster.used(host) for host in cluster.hosts}
        given = cluster.used_by_slurm()
        samples += 1
        over = {host: (count, given[host]) for host, count in used.items() if count is None or count > given[host]}
        expect(not over, f"more is used than given: {over}")
        active = sum(list(cluster.guests(host).values()).count("active") for host in cluster.hosts)
        if active == guests:
            break
        took = time.monotonic() - begun
        expect(took < 1800, f"after {took:.0f} s: {active} guests")
        time.sleep(2)
    running = time.monotonic() - begun
    given, used = cluster.used_by_slurm(), {host: cluster.used(host) for host in cluster.hosts}
    expect(used == given and sum(used.values()) == guests, f"used {used}, given {given}")
    refusals = 0
    for host in cluster.hosts:
        log = cluster.ask(host, "/v1/pool/log?limit=4096")
        refusals += sum(it["outcome"] != "ok" for it in log)
    expect(refusals == 0, f"{refusals} refusals")
    memory = before - free_memory()
    begun = time.monotonic()
    cluster.settle(900)
    ended = time.monotonic() - begun
    return (
        f"{guests} guests on {hosts} hosts: hosts up after {up:.0f} s, submitted in {submitted:.0f} s, all active "
        f"{running:.0f} s after the first was submitted, {samples} samples, 0 refusals, {memory:.1f} GiB of "
        f"memory; all cancelled and gone after {ended:.0f} s"
    )
