"""Runs the session of docs/scale-out.md as it is written there."""

import re
import time

from hosts import PROJECT, Failure, expect

DOCUMENT = PROJECT / "docs/scale-out.md"
HEADING = "## A session"


def steps():
    """Returns the commands of the session with what they print: (prompt, command, lines)."""
    text = DOCUMENT.read_text()
    expect(HEADING in text, f"{DOCUMENT} has a session")
    section = text.split(HEADING, 1)[1].split("\n## ", 1)[0]
    found = []
    for line in re.findall(r"^    (.*)$", section, re.M):
        if match := re.match(r"(ctl|ada|n\d+)([#$]) (.*)", line):
            found.append((match[1], match[3], []))
        elif found:
            found[-1][2].append(line)
    return found


def matches(told, wanted):
    """Returns whether lines are as documented: `…` stands for anything, numbers for numbers,
    and any number of blanks for any other."""
    parts = []
    for line in wanted:
        words = re.escape(" ".join(line.split())).replace("…", ".*")
        parts.append(re.sub(r"\\ ", r" +", words))
    return re.fullmatch(r" *\n *".join(parts).replace("(granule:", "(granule:"), told.strip(), re.S) is not None


def documented(cluster):
    """Runs each command, and compares what it prints; a command that only waits for a state is
    repeated until it prints that."""
    session = steps()
    expect(len(session) >= 8, f"{len(session)} commands")
    for who, command, wanted in session:
        end = time.monotonic() + 60
        repeats = not re.match(r"sbatch|scancel|scontrol (update|suspend|resume)", command)
        while True:
            if who == "ada":
                done = cluster.script("as", "ada", "bash", "-c", command, check=False)
            else:
                done = cluster.script("on", who, "bash", "-c", command, check=False)
            told = done.stdout + done.stderr
            told = "\n".join(" ".join(line.split()) for line in told.splitlines())
            if matches(told, wanted):
                break
            if not repeats or time.monotonic() > end:
                raise Failure(f"`{command}` printed:\n{told}\ninstead of:\n" + "\n".join(wanted))
            time.sleep(0.3)
    cluster.settle()
    return f"{len(session)} commands of {DOCUMENT.name} print what it says"
