"""What is shown of guests in jobs, on a cluster of three hosts that is empty and idle.

Each case gets the cluster, leaves it empty and idle, and returns what it has measured.
"""

import pathlib
import re
import threading
import time

from hosts import PROJECT, Failure, expect, wait_for

GUESTS = 100
# The scripts of jobs: two of contrib/slurm, and those of these tests.
JOB = "/etc/slurm/jobs/on-host.sh"
OWN_POOL = "/etc/slurm/jobs/own-pool.sh"
OF_ITS_OWN = ["--comment=own-pool", "--mem=64M"]
LIGHT = PROJECT / "tests/cluster/jobs/light.sh"
ANY_SIZE = PROJECT / "tests/cluster/jobs/any-size.sh"
TWO_CPUS = PROJECT / "tests/cluster/jobs/two-cpus.sh"


def together(cluster):
    """100 guests at once: what the pools have given away is what the engine counts."""
    loop = f"for i in $(seq {GUESTS}); do sbatch --parsable --mem=5M {LIGHT}; done"
    begun = time.monotonic()
    numbers, samples = [], 0
    failed = []

    def submit():
        try:
            numbers.extend(map(int, cluster.as_user("ada", "bash", "-c", loop).split()))
        except Failure as error:
            failed.append(error)

    thread = threading.Thread(target=submit)
    thread.start()
    submitted = None
    while True:
        # The pools first: the engine gives a granule away before it is taken.
        used = {host: cluster.used(host) for host in cluster.hosts}
        given = cluster.used_by_slurm()
        samples += 1
        for host, count in used.items():
            # A VMM that has no time to answer is asked again.
            expect(count is None or count <= given[host], f"{host}: {count} used, {given} given")
        if submitted is None and not thread.is_alive():
            submitted = time.monotonic()
            expect(not failed, str(failed))
        states = [state for host in cluster.hosts for state in cluster.guests(host).values()]
        if states.count("active") == GUESTS:
            break
        expect(time.monotonic() - begun < 200, f"after 200 s: {len(states)} guests, {given} given")
        time.sleep(0.2)
    running = time.monotonic()
    for _ in range(5):
        used, given = {host: cluster.used(host) for host in cluster.hosts}, cluster.used_by_slurm()
        samples += 1
        expect(used == given and sum(used.values()) == GUESTS, f"used {used}, given {given}")
    queue = cluster.jobs()
    expect(set(numbers) == set(queue), "each job is in the queue")
    refusals = 0
    for host in cluster.hosts:
        log = cluster.ask(host, "/v1/pool/log?limit=4096")
        refusals += sum(it["outcome"] != "ok" for it in log)
    expect(refusals == 0, f"{refusals} refusals")
    cluster.settle()
    ready = max(0.0, running - (submitted or running))
    return f"{GUESTS} guests, {ready:.1f} s after the last was submitted; {samples} samples, 0 refusals, {used}"


def statuses(cluster):
    """Statuses 0, 6 and 5, and a job that is cancelled, whose guest hears its power button."""
    ends = {}
    for status, options, script, arguments in [
        (0, ["--mem=8M"], JOB, ["probe", "end=poweroff"]),
        (6, ["--mem=8M"], JOB, ["probe", "end=panic"]),
        # The engine is told of one granule, and the guest has more than the pool.
        (5, ["--gres=granule:1"], ANY_SIZE, ["1G"]),
        (0, OF_ITS_OWN, OWN_POOL, ["probe", "end=poweroff"]),
        (6, OF_ITS_OWN, OWN_POOL, ["probe", "end=crash"]),
    ]:
        number = cluster.sbatch("ada", *options, script=script, arguments=arguments)
        ends[number] = status
    cancelled = cluster.sbatch("ada", "--mem=8M", arguments=("/srv/images/button",))
    host = cluster.wait_for_guest(cancelled)
    wait_for("its output", 20, lambda: "waits for its power button" in cluster.output("ada", cancelled))
    cluster.as_user("ada", "scancel", cancelled)
    for number, status in ends.items():
        row = cluster.account(number)[str(number)]
        state = "COMPLETED" if status == 0 else "FAILED"
        expect((row["State"], row["ExitCode"]) == (state, f"{status}:0"), f"status {status}: {row}")
        result = cluster.result("ada", number)
        expect(result["status"] == status, f"{result}")
    rows = cluster.account(cancelled)
    expect(rows[str(cancelled)]["State"].startswith("CANCELLED"), f"{rows}")
    result = cluster.result("ada", cancelled)
    expect((result["status"], result["reason"]) == (143, "poweroff"), f"{result}")
    expect("was pressed" in result["guests"][0]["console"], f"{result}")
    wait_for("an empty pool", 30, lambda: cluster.used(host) == 0)
    cluster.settle()
    return "0, 6 and 5 as exit statuses of jobs; cancelled: the guest turned itself off"


def killed_client(cluster):
    """kill -9 of a job's command: nothing is left of its guest, without an epilog."""
    number = cluster.sbatch("ada", "--mem=30M", arguments=("probe", "shell"))
    host = cluster.wait_for_guest(number)
    expect(cluster.used(host) == 4, "30 MiB are four granules of 8")
    client = cluster.process(host, rf"^mkvmm run --on .*name=job{number},")
    worker = cluster.process(host, rf"^mkvmm-worker: job{number}")
    pathlib.Path("/proc", str(client)).stat()
    begun = time.monotonic()
    cluster.kill(client)
    wait_for("an empty pool", 30, lambda: cluster.used(host) == 0, 0.01)
    took = time.monotonic() - begun
    expect(not pathlib.Path("/proc", str(worker)).exists(), "its process is gone")
    row = cluster.account(number)[str(number)]
    expect(row["State"] == "FAILED" and row["ExitCode"].endswith(":9"), f"{row}")
    cluster.settle()
    return f"the pool was empty {took:.2f} s after the kill"


def lost_hosts(cluster):
    """A host crashes while another is cut off: what fits runs elsewhere, nothing runs twice."""
    granules = cluster.granules
    whole, cut, crashed = cluster.hosts
    # Half of the first host is taken.
    taken = cluster.sbatch("bob", "-w", whole, f"--gres=granule:{granules // 2}", arguments=("probe", "shell"))
    cluster.wait_for_guest(taken)
    cluster.scontrol("update", f"nodename={whole}", "state=drain", "reason=test")
    cluster.scontrol("update", f"nodename={crashed}", "state=drain", "reason=test")
    moved = cluster.sbatch("ada", "--gres=granule:1", arguments=("probe", "shell"))
    expect(cluster.wait_for_guest(moved) == cut, "only this host takes jobs")
    cluster.scontrol("update", f"nodename={crashed}", "state=resume")
    cluster.scontrol("update", f"nodename={cut}", "state=drain", "reason=test")
    few = [cluster.sbatch("ada", "--gres=granule:4", arguments=("probe", "shell")) for _ in range(4)]
    large = cluster.sbatch("ada", f"--gres=granule:{granules - 16}", arguments=("probe", "shell"))
    for number in (*few, large):
        expect(cluster.wait_for_guest(number) == crashed, "only this host takes jobs")
    # The large one fits nowhere else.
    for host in (whole, cut):
        cluster.scontrol("update", f"nodename={host}", "state=resume")
    begun = time.monotonic()
    cluster.script("crash", crashed)
    cluster.script("cut", cut)
    gone = again = None
    moves = {}
    name = f"job{moved}"
    while gone is None or again is None or len(moves) < len(few):
        now = time.monotonic() - begun
        on_cut = cluster.guests(cut).get(name)
        elsewhere = cluster.guests(whole)
        # It is looked at where it was first: it does not come back.
        expect(on_cut != "active" or name not in elsewhere, f"{name} is on {cut} and {whole} after {now:.1f} s")
        if gone is None and on_cut is None:
            gone = now
        if again is None and elsewhere.get(name) == "active":
            again = now
        for number in few:
            if elsewhere.get(f"job{number}") == "active":
                moves.setdefault(number, now)
        expect(now < 150, f"after 150 s: {elsewhere} on {whole}, {on_cut} on {cut}; {cluster.jobs()}")
        time.sleep(0.1)
    queue = cluster.jobs()
    expect(queue[large][0] == "PENDING" and "Held" not in queue[large][2], f"{queue[large]}")
    for number in (*few, moved):
        expect(cluster.job(number)["Restarts"] == "1", f"job {number} was started twice")
    # Hosts that are lost do not end what runs on others.
    expect(cluster.job(taken)["Restarts"] == "0", "the guest of the host that is well runs on")
    for host in (cut, crashed):
        cluster.script("heal", host)
    cluster.wait_for_guest(large, seconds=60)
    cluster.settle()
    return (
        f"crash: {len(few)} guests ran elsewhere after at most {max(moves.values()):.1f} s, the one that fits nowhere "
        f"waited, not held; cut off: the guest ended after {gone:.1f} s and ran elsewhere after {again:.1f} s"
    )


def killed_vmm(cluster):
    """The VMM of a host is killed: its job runs elsewhere, and the host is drained and resumed."""
    number = cluster.sbatch("ada", "--mem=8M", arguments=("probe", "shell"))
    host = cluster.wait_for_guest(number)
    server = cluster.process(host, r"^mkvmm serve ")
    worker = cluster.process(host, rf"^mkvmm-worker: job{number}")
    begun = time.monotonic()
    cluster.kill(server)
    wait_for("its guest is gone", 10, lambda: worker not in cluster.processes(host))

    def drained():
        node = cluster.node(host)
        return "DRAIN" in node["State"] and node.get("Reason", "").startswith("mkvmm:")

    wait_for(f"{host} is drained", 30, drained)
    drain = time.monotonic() - begun
    wait_for("its job is requeued", 30, lambda: cluster.job(number)["Restarts"] == "1")

    def elsewhere():
        return [it for it in cluster.hosts if it != host and cluster.guests(it).get(f"job{number}") == "active"]

    wait_for("its guest runs elsewhere", 60, elsewhere)
    moved = time.monotonic() - begun
    # A host that is booted again does not know that it was drained.
    cluster.on(host, "rm", "/run/mkvmm-drained", "/run/mkvmm-heard")
    begun = time.monotonic()
    cluster.script("serve", host)
    wait_for(f"{host} is resumed", 30, lambda: "DRAIN" not in cluster.node(host)["State"])
    resumed = time.monotonic() - begun
    # What an administrator has drained is theirs.
    cluster.scontrol("update", f"nodename={host}", "state=drain", "reason=disk")
    cluster.kill(cluster.process(host, r"^mkvmm serve "))
    time.sleep(6)
    cluster.script("serve", host)
    time.sleep(6)
    node = cluster.node(host)
    expect("DRAIN" in node["State"] and node["Reason"].startswith("disk"), f"{node}")
    cluster.scontrol("update", f"nodename={host}", "state=resume")
    cluster.settle()
    return f"drained after {drain:.1f} s, the guest ran elsewhere after {moved:.1f} s, resumed {resumed:.1f} s after serve"


def cpu_time(cluster):
    """A guest with two vCPUs in a job with one processor: limited to it, and accounted."""
    number = cluster.sbatch("ada", "--gres=granule:1", script=TWO_CPUS, arguments=("/srv/images/two",))
    host = cluster.wait_for_guest(number)
    wait_for("its output", 30, lambda: "probe: pass" in cluster.output("ada", number))
    worker = cluster.process(host, rf"^mkvmm-worker: job{number}")

    def threads():
        """The CPU time and the processors of each vCPU's thread."""
        found = {}
        for task in pathlib.Path("/proc", str(worker), "task").iterdir():
            name = (task / "comm").read_text().strip()
            if "vcpu" in name:
                fields = (task / "stat").read_text().rsplit(")", 1)[1].split()
                allowed = re.search(r"Cpus_allowed_list:\s*(\S+)", (task / "status").read_text())[1]
                found[name] = (int(fields[11]) + int(fields[12]), allowed)
        return found

    before, begun = threads(), time.monotonic()

    def used_since(after):
        return {name: (after[name][0] - before[name][0]) / 100 for name in after}

    # Slurm charges for what it has seen a second before the end at the earliest, and others
    # may use the processor as well.
    wait_for("it has worked", 180, lambda: sum(used_since(threads()).values()) >= 28, 0.5)
    after, seconds = threads(), time.monotonic() - begun
    used = used_since(after)
    expect(len(used) == 2, f"two vCPUs: {after}")
    expect(all(re.fullmatch(r"\d+", allowed) for _, allowed in after.values()), f"one processor: {after}")
    expect(len({allowed for _, allowed in after.values()}) == 1, f"the same processor: {after}")
    expect(0 < sum(used.values()) <= 1.05 * seconds, f"{used} in {seconds} s")
    cluster.as_user("ada", "scancel", number)
    rows = cluster.account(number)
    result = cluster.result("ada", number)
    own, charged = result["vcpu_seconds"], seconds_of(rows[f"{number}.batch"]["TotalCPU"])
    # Slurm looks once in a second, and may be late on a busy host.
    expect(abs(charged - own) <= 3, f"charged {charged}, used {own}")
    cluster.settle()
    return f"{used} s in {seconds:.1f} s on one processor; {charged:.2f} s charged of {own:.2f} used"


def seconds_of(text):
    """Returns the seconds of a time of sacct: [[DAYS-]HOURS:]MINUTES:SECONDS."""
    days, _, rest = text.rpartition("-")
    seconds = 0.0
    for part in rest.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds + 86400 * int(days or 0)


def drain_and_suspend(cluster):
    """Drained hosts get no jobs and keep their guests; suspended guests are paused."""
    number = cluster.sbatch("ada", "--mem=8M", arguments=("probe", "spin"))
    host = cluster.wait_for_guest(number)
    cluster.scontrol("update", f"nodename={host}", "state=drain", "reason=test")
    other = cluster.sbatch("ada", "--mem=8M", arguments=("probe", "shell"))
    expect(cluster.wait_for_guest(other) != host, "a drained host gets no job")
    expect(cluster.guests(host) == {f"job{number}": "active"}, "its guest runs on")
    cluster.scontrol("update", f"nodename={host}", "state=resume")
    begun = time.monotonic()
    cluster.scontrol("suspend", str(number))
    cluster.wait_for_guest(number, "paused", 20)
    suspended = time.monotonic() - begun
    ticks = cluster.ask(host, f"/v1/instances/job{number}")["cpu_us"]
    # Longer than its lease.
    time.sleep(12)
    later = cluster.ask(host, f"/v1/instances/job{number}")["cpu_us"]
    expect(later - ticks < 100_000, f"paused, it used {later - ticks} us")
    begun = time.monotonic()
    cluster.scontrol("resume", str(number))
    cluster.wait_for_guest(number, "active", 20)
    resumed = time.monotonic() - begun
    wait_for("it runs", 20, lambda: cluster.ask(host, f"/v1/instances/job{number}")["cpu_us"] > later + 100_000)
    expect(cluster.job(number)["Restarts"] == "0", "it is the same guest")
    cluster.settle()
    return f"paused {suspended:.1f} s after scontrol suspend for longer than its lease, resumed after {resumed:.1f} s"
