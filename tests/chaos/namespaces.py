"""Hosts in network namespaces of their own, around one that holds the broker; needs root.

    host ── veth ── hub (the broker; nft drops what a test says)

Each host reaches the broker at an address of its own link, 10.X.N.1. The test's process is a host,
too, so that its clients can be cut off like others. All names carry this process's id.
"""

import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import forage
from forage import Client
from forage.processes import Keeper, LocalProcess

__all__ = ["FROM", "TO", "Fleet", "why_not"]

FROM = "from"
"""What a host sends does not arrive."""
TO = "to"
"""What is sent to a host does not arrive."""

PORT = 1883
START_S = 30.0
LIMIT_S = 60.0
_numbers = itertools.count(1)


def why_not() -> str:
    """Why there can be no namespaces here; empty where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program in ("ip", "nft", "tc"):
        if shutil.which(program) is None:
            return f"{program} is not installed (Debian: apt install iproute2 nftables)"
    probe = f"forage-probe-{os.getpid()}"
    done = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if done.returncode:
        return f"no network namespaces here: {done.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", probe], check=True)
    return ""


def run(*command: str) -> str:
    """A command that must do; its output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def _free_network() -> str:
    """The first two numbers of addresses that no link of this process's own namespace has."""
    known = run("ip", "-4", "-o", "addr")
    return next(f"10.{number}" for number in range(77, 255) if f" 10.{number}." not in known)


class Fleet:
    """A broker, a controller and devices, each on a host of its own, and clients on another."""

    def __init__(self, folder: Path, devices: int, *, detect_s: float) -> None:
        """Nothing is made yet.

        Args:
            folder: For states and logs.
            devices: How many.
            detect_s: Silence after which a device counts as dead.
        """
        self.folder = folder
        self.detect_s = detect_s
        self.names = [f"device-{number}" for number in range(1, devices + 1)]
        self.hosts = ["client", "controller", *self.names]
        self._tag = f"{os.getpid():x}{next(_numbers)}"
        self._hub = f"forage-{self._tag}-hub"
        self._net = _free_network()
        self._keeper: Keeper | None = None
        self.processes: dict[str, LocalProcess] = {}

    def __enter__(self) -> Self:
        try:
            self._make_network()
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End processes and namespaces."""
        if self._keeper is not None:
            self._keeper.close()
        for host in ["hub", *self.hosts]:
            space = f"forage-{self._tag}-{host}"
            subprocess.run(["ip", "netns", "delete", space], capture_output=True)
        # The client's end is not in a namespace that takes it along; its peer's end does.

    # -- the network ----------------------------------------------------------------------------

    def _make_network(self) -> None:
        run("ip", "netns", "add", self._hub)
        run("ip", "-n", self._hub, "link", "set", "lo", "up")
        for number, host in enumerate(self.hosts, 1):
            inner, outer = f"fh{self._tag}-{number}", f"fo{self._tag}-{number}"
            run(
                "ip",
                "link",
                "add",
                outer,
                "type",
                "veth",
                "peer",
                "name",
                inner,
                "netns",
                self._hub,
            )
            run("ip", "-n", self._hub, "addr", "add", f"{self._net}.{number}.1/24", "dev", inner)
            run("ip", "-n", self._hub, "link", "set", inner, "up")
            at: list[str] = []
            if host != "client":
                space = self._space(host)
                run("ip", "netns", "add", space)
                run("ip", "link", "set", outer, "netns", space)
                at = ["-n", space]
                run("ip", *at, "link", "set", "lo", "up")
            run("ip", *at, "addr", "add", f"{self._net}.{number}.2/24", "dev", outer)
            run("ip", *at, "link", "set", outer, "up")
        self._nft("add table inet forage")
        for chain in ("input", "output"):
            hook = f"type filter hook {chain} priority 0;"
            self._nft(f"add chain inet forage {chain} {{ {hook} }}")

    def _space(self, host: str) -> str:
        return f"forage-{self._tag}-{host}"

    def _nft(self, rule: str) -> str:
        return run("ip", "netns", "exec", self._hub, "nft", rule)

    def _rule(self, host: str, way: str, verdict: str) -> None:
        address = f"{self._net}.{self.hosts.index(host) + 1}.2"
        if way == FROM:
            self._nft(f"add rule inet forage input ip saddr {address} {verdict}")
        else:
            self._nft(f"add rule inet forage output ip daddr {address} {verdict}")

    def part(self, host: str, ways: Sequence[str]) -> None:
        """Nothing passes these ways between the host and the broker."""
        for way in ways:
            self._rule(host, way, "counter drop")

    def lose_three_in_ten(self, host: str) -> None:
        """Of ten packets three are lost, both ways, always the same three.

        Where they are drawn by lot, TCP is silent for half a minute in one run of some hundreds.
        """
        for way in (FROM, TO):
            self._rule(host, way, "numgen inc mod 10 { 0, 3, 6 } counter drop")

    def dropped(self) -> int:
        """Packets that rules have dropped."""
        words = self._nft("list table inet forage").replace("\n", " ").split()
        return sum(int(after) for word, after in itertools.pairwise(words) if word == "packets")

    def throttle(self, host: str, rate: str) -> None:
        """A slow link at the host, in both directions; `rate` as `tc` has it."""
        number = self.hosts.index(host) + 1
        shape = ["root", "tbf", "rate", rate, "burst", "4kb", "latency", "400ms"]
        inner, outer = f"fh{self._tag}-{number}", f"fo{self._tag}-{number}"
        run("tc", "-n", self._hub, "qdisc", "replace", "dev", inner, *shape)
        run("tc", "-n", self._space(host), "qdisc", "replace", "dev", outer, *shape)

    def heal(self) -> None:
        """All packets pass."""
        for chain in ("input", "output"):
            self._nft(f"flush chain inet forage {chain}")

    # -- the programs -------------------------------------------------------------------------------

    def url(self, host: str) -> str:
        """The broker, as this host reaches it; the login is for nobody but the rule that an open
        broker elsewhere must be asked for."""
        return f"mqtt://tester:tester@{self._net}.{self.hosts.index(host) + 1}.1:{PORT}"

    def _start(self) -> None:
        keeper = self._keeper = Keeper(folder_to_remove=None)
        self.folder.mkdir(parents=True, exist_ok=True)
        inherited = {
            key: value for key, value in os.environ.items() if not key.startswith("FORAGE_")
        }
        environment = {**inherited, "FORAGE_CONFIG": os.devnull}

        def add(host: str, space: str, module: str, *flags: str) -> None:
            python = [sys.executable, "-P", "-m", module]
            command = [shutil.which("ip") or "ip", "netns", "exec", space, *python, *flags]
            self.processes[host] = LocalProcess(
                host,
                keeper,
                command=lambda: command,
                environment=environment,
                folder=self.folder / host,
            )

        add("broker", self._hub, "forage_broker", "--host", "0.0.0.0", "--insecure")
        common = ["--state-dir", "state", "--broker"]
        flags = ["--name", "main", "--detect-s", f"{self.detect_s:g}"]
        own = [self.url("controller"), *flags]
        add("controller", self._space("controller"), "forage_controller", *common, *own)
        for name in self.names:
            own = [self.url(name), "--name", name, "--slots", "1"]
            add(name, self._space(name), "forage_agent", *common, *own)
        for process in self.processes.values():
            process.begin()
            process.wait_until_ready(time.monotonic() + START_S)

    def client(self) -> Client:
        """On the host of clients."""
        return forage.connect(self.url("client"), user="tester", timeout_s=START_S)

    def verdicts(self, client: Client) -> dict[str, str]:
        """The controller's, by device."""
        return {row.name: row.verdict for row in client.devices()}

    def until(self, is_true: Callable[[], bool], what: str) -> None:
        """Look until it holds, for a minute."""
        deadline_s = time.monotonic() + LIMIT_S
        while not is_true():
            assert time.monotonic() < deadline_s, f"not within {LIMIT_S:g} s: {what}\n{self.logs()}"
            time.sleep(0.02)

    def logs(self) -> str:
        """The ends of all logs."""
        return "\n".join(f"--- {name}\n{each.log_tail()}" for name, each in self.processes.items())

    def said(self, words: str) -> list[str]:
        """Lines of the controller's log with these words."""
        lines = self.processes["controller"].log.read_text().splitlines()
        return [line for line in lines if words in line]
