"""What needs no cluster: the agent of Pacemaker, the manifests of Kubernetes."""

import contextlib
import os
import pathlib
import re
import subprocess
import tempfile

from hosts import PROJECT, expect

AGENT = PROJECT / "contrib/pacemaker/mkvmm"
MANIFESTS = PROJECT / "contrib/kubernetes"
# How many clients the VMM of the agent takes.
CLIENTS = 4
# The version of the schemas, and what is fetched with it.
KUBERNETES = "1.37.0"


def pacemaker(mkvmm):
    """ocf-tester drives the agent through what Pacemaker asks of it."""
    with tempfile.TemporaryDirectory(prefix="mkvmm-ocf.") as place:
        socket, state = f"{place}/sock", f"{place}/state"
        server = subprocess.Popen(
            [mkvmm, "serve", "--pool", "64M", "--socket", socket, "--state-dir", state, "--connections", str(CLIENTS)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        try:
            expect(server.stdout.readline().startswith("ready"), "the VMM is ready")
            options = {"binary": mkvmm, "socket": socket, "guest": "web", "memory": "8M", "kernel": "probe", "cmdline": "spin"}
            words = ["ocf-tester", "-n", "web"]
            for key, value in options.items():
                words += ["-o", f"{key}={value}"]
            environment = dict(os.environ, OCF_ROOT="/usr/lib/ocf", HA_RSCTMP=place)
            done = subprocess.run(
                [*words, str(AGENT)], capture_output=True, text=True, timeout=120, env=environment, stdin=subprocess.DEVNULL
            )
            told = done.stdout + done.stderr
            expect(done.returncode == 0 and "passed all tests" in told, told)
            left = subprocess.run([mkvmm, "list", "-q", "--socket", socket], capture_output=True, text=True, timeout=20)
            expect(left.stdout == "", f"a guest is left: {left.stdout}")
            environment |= {f"OCF_RESKEY_{key}": value for key, value in options.items()}
            not_known(mkvmm, socket, environment)
        finally:
            server.kill()
            server.wait(timeout=30)
            # Its guest runs on, so it may not be started elsewhere.
            expect(ask_agent(environment, "monitor", OCF_RESKEY_CRM_meta_interval="0") == 1, "a guest without a VMM")
            again = subprocess.Popen(
                [mkvmm, "serve", "--pool", "64M", "--socket", socket, "--state-dir", state, "--grace", "0"],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )
            again.stdout.readline()
            again.terminate()
            again.wait(timeout=30)
    return "ocf-tester: passed all tests; a VMM that is busy or gone is not taken for a guest that does not run"


def ask_agent(environment, action, **more):
    """Returns the status of the agent."""
    done = subprocess.run(
        [str(AGENT), action], capture_output=True, timeout=60, env=environment | more, stdin=subprocess.DEVNULL
    )
    return done.returncode


def not_known(mkvmm, socket, environment):
    """While a VMM takes no more clients, nobody knows whether the guest runs."""
    expect(ask_agent(environment, "start") == 0, "the guest starts")
    watching = []
    try:
        for _ in range(CLIENTS):
            follower = subprocess.Popen(
                [mkvmm, "events", "--follow", "--socket", socket], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
            )
            watching.append(follower)
            # It is being served once it has said something.
            follower.stdout.readline()
        expect(ask_agent(environment, "monitor") == 1, "a monitor while the VMM is busy")
        expect(ask_agent(environment, "stop") == 1, "a stop while the VMM is busy")
    finally:
        for follower in watching:
            follower.kill()
            follower.wait(timeout=20)
    expect(ask_agent(environment, "monitor") == 0, "the guest runs")


def kubernetes(_mkvmm):
    """The manifests follow the schemas of Kubernetes, and a wrong one does not."""
    venv = PROJECT / ".cache/kubernetes-validate"
    program = venv / "bin/kubernetes-validate"
    with contextlib.suppress(OSError):
        told = subprocess.run([venv / "bin/pip", "list"], capture_output=True, text=True, timeout=60).stdout
        if not re.search(rf"kubernetes-validate +{re.escape(KUBERNETES)}\b", told):
            raise OSError
    if not program.exists():
        python = next(it for it in ("/usr/bin/python3", "python3") if "/" not in it or pathlib.Path(it).exists())
        subprocess.run([python, "-m", "venv", "--clear", venv], check=True, timeout=120)
        subprocess.run(
            [venv / "bin/pip", "install", "-q", f"kubernetes-validate=={KUBERNETES}"], check=True, timeout=300
        )
    files = sorted(MANIFESTS.glob("*.yaml"))
    expect(files, "there are manifests")

    def validate(file):
        return subprocess.run([program, "--strict", file], capture_output=True, text=True, timeout=120)

    for file in files:
        done = validate(file)
        expect(done.returncode == 0, f"{file}: {done.stdout}{done.stderr}")
    with tempfile.TemporaryDirectory(prefix="mkvmm-manifest.") as place:
        wrong = pathlib.Path(place, "wrong.yaml")
        wrong.write_text(files[0].read_text().replace("containers:", "boxes:"))
        expect(validate(wrong).returncode != 0, "a wrong manifest is refused")
    return f"{len(files)} manifests follow the schemas"
