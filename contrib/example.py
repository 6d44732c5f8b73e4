#!/usr/bin/env python3
"""Uses mkvmm's control socket from Python, with the standard library only.

    contrib/example.py [SOCKET]

It makes the pool be what a fleet of two built-in test guests says, waits until both
have ended, prints what they have printed, and deletes them. SOCKET is the control
socket, or else $MKVMM_SOCKET, or else /run/mkvmm.sock. docs/openapi.json describes all
routes.
"""
import http.client
import json
import os
import socket
import sys
from urllib.parse import quote


class Refused(Exception):
    """mkvmm has refused a request; `code`, `help` and others are in `error`."""

    def __init__(self, error):
        super().__init__(error["message"])
        self.error = error


class Connection(http.client.HTTPConnection):
    """An HTTP connection over a Unix socket."""

    def __init__(self, path):
        super().__init__("mkvmm")
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self.path)


class Mkvmm:
    """A VMM that serves at a control socket."""

    def __init__(self, path):
        self.path = path

    def open(self, method, route, body=None):
        """Sends a request; returns the response, which may still be arriving."""
        connection = Connection(self.path)
        text = None if body is None else json.dumps(body)
        connection.request(method, route, text, {"content-type": "application/json"})
        response = connection.getresponse()
        if response.status >= 400:
            raise Refused(json.load(response)["error"])
        return response

    def call(self, method, route, body=None):
        """Sends a request; returns the object of the response."""
        return json.load(self.open(method, route, body))

    def apply(self, instances, **options):
        """Makes the pool be what `instances` says; returns what was done."""
        return self.call("POST", "/v1/apply", {"instances": instances, **options})

    def events(self, since=0, follow=True):
        """Yields events with numbers above `since`, and further ones as they happen."""
        response = self.open("GET", f"/v1/events?since={since}&follow={str(follow).lower()}")
        for line in response:
            if line.startswith(b"data: "):
                yield json.loads(line[len("data: "):])

    def newest(self):
        """Returns the number of the newest event, or 0."""
        return max((event["seq"] for event in self.events(follow=False)), default=0)

    def wait(self, names, since):
        """Waits until all these instances have ended, by events with numbers above
        `since`; returns their reasons."""
        reasons = {}
        for event in self.events(since):
            name = event.get("instance")
            if name in names and event["kind"] == "state":
                # One that boots again has not ended.
                reasons.pop(name, None)
                if event.get("reason"):
                    reasons[name] = event["reason"]
            if reasons.keys() >= set(names):
                return reasons
        raise OSError("it has ended")

    def output(self, name):
        """Returns what an instance has printed."""
        response = self.open("GET", f"/v1/instances/{quote(name)}/output")
        return response.read().decode(errors="replace")


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("MKVMM_SOCKET", "/run/mkvmm.sock")
    vmm = Mkvmm(path)
    pool = vmm.call("GET", "/v1/pool")
    print(f"pool: {pool['avail'] >> 20}M of {pool['size'] >> 20}M are free")
    fleet = [{"name": name, "memory": "8M", "kernel": "probe"} for name in ("one", "two")]
    # Instances of these names may have ended before.
    since = vmm.newest()
    for change in vmm.apply(fleet)["changes"]:
        print(f"{change['name']}: {change['action']}")
    for name, reason in sorted(vmm.wait(["one", "two"], since).items()):
        last = vmm.output(name).splitlines()[-1]
        print(f"{name}: ended ({reason}), {last!r}")
        vmm.call("DELETE", f"/v1/instances/{quote(name)}")
    audit = vmm.call("GET", "/v1/audit")
    print("audit:", "ok" if audit["ok"] else audit["problems"])


if __name__ == "__main__":
    try:
        main()
    except Refused as refused:
        sys.exit(f"error: {refused}")
    except OSError as error:
        sys.exit(f"error: no VMM answers: {error}")
