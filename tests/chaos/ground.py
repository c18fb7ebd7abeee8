"""The ground that rounds are fought on: a cluster of processes with a proxy before each program.

Owns the cluster, its proxies, the clients, and every blow that a plan may order. One ground serves
many rounds; whoever found it broken makes a new one.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import forage
from chaos import lasting_broker
from chaos.pair import CONTROLLERS, SAME_DISK, SYNCHRONOUS, Log, Pair
from chaos.proxy import HOST, Proxies, Proxy
from chaos.work import Work
from forage import Client, LocalCluster
from forage.processes import LocalProcess
from forage_wire.codec import decode
from forage_wire.errors import WireError
from forage_wire.messages import Acknowledged

__all__ = ["Earlier", "Ground", "Leaver", "ProxiedCluster"]

DETECT_S = 0.5
DEVICES = 3
SLOTS = 2
READY_S = 30.0
LEAVER = Path(__file__).with_name("leaver.py")


class ProxiedCluster(LocalCluster):
    """A local cluster in which controller and devices reach the broker through proxies."""

    def __init__(
        self, proxies: Proxies, prefixes: Mapping[str, Sequence[str]], **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.proxies = proxies
        self.prefixes = dict(prefixes)
        self.is_lasting = settings.get("engine") == "mosquitto"
        self.has_standby = False
        """Whether the controller, too, stands by where another rules."""

    @property
    def broker_port(self) -> int:
        """The broker's own."""
        return int(self.broker_url.rpartition(":")[2])

    def url_through(self, name: str) -> str:
        """The broker's address through the proxy of this name."""
        proxy = self.proxies.add(name)
        proxy.upstream_port = self.broker_port
        return f"mqtt://{HOST}:{proxy.port}"

    def _service_command(self, module: str, name: str, *flags: str) -> list[str]:
        command = super()._service_command(module, name, *flags)
        role = "controller" if module == "forage_controller" else name
        command[command.index("--broker") + 1] = self.url_through(role)
        return [*self.prefixes.get(role, ()), *command]

    def _controller_command(self) -> list[str]:
        command = super()._controller_command()
        return [*command, "--standby"] if self.has_standby else command

    def add_standby(self, folder: Path, state_dir: str) -> LocalProcess:
        """A second controller, with its log below the folder; not started yet."""

        def command() -> list[str]:
            own = list(super(ProxiedCluster, self)._controller_command())
            own[own.index("--broker") + 1] = self.url_through("standby")
            own[own.index("--name") + 1] = CONTROLLERS["standby"]
            own[own.index("--state-dir") + 1] = state_dir
            return [*own, "--standby"]

        assert self._keeper is not None
        return LocalProcess(
            "standby",
            self._keeper,
            command=command,
            environment=self._environment(folder / "tmp"),
            folder=folder / "standby",
        )

    def _broker_command(self) -> list[str]:
        command = super()._broker_command()
        if self.is_lasting:
            start = command.index("-m")
            command[start : start + 2] = [lasting_broker.__file__]
        return [*self.prefixes.get("broker", ()), *command]


@dataclass
class Earlier:
    """A round that is over, to be looked at again when the next one is."""

    folder: Path
    works: list[Work]
    limits: frozenset[str]
    """Which documented limits it has met; see `chaos.limits`."""


class Leaver:
    """A client as a process of its own, which hands work over and may be killed or frozen."""

    def __init__(
        self, url: str, proxy: Proxy, gate: Path, token: str, calls: int, tasks: int = 1
    ) -> None:
        """Start it; it is not waited for."""
        self.token = token
        self.calls = calls
        self.acknowledged: set[str] = set()
        """Tasks whose only page was acknowledged to it."""
        proxy.watch(lambda _, packet: self._note(packet.topic, packet.payload))
        command = [sys.executable, str(LEAVER), url, str(gate), token, str(calls), str(tasks)]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def _note(self, topic: str, payload: bytes) -> None:
        if "/to/" not in topic:
            return
        try:
            message = decode(payload)
        except WireError:
            return
        if isinstance(message, Acknowledged):
            self.acknowledged |= {task for task, first in message.rows if first == 0}

    def signal(self, number: signal.Signals) -> None:
        """Kill, freeze or thaw it."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    def end(self) -> None:
        """Kill it if it lives."""
        self.signal(signal.SIGKILL)
        self._process.wait()


class Ground:
    """Use it as a context manager; `heal` makes it whole."""

    def __init__(
        self,
        engine: str,
        folder: Path,
        *,
        seed: int = 0,
        devices: int = DEVICES,
        slots: int = SLOTS,
        detect_s: float = DETECT_S,
        standby: str = "",
        env: Mapping[str, str] | None = None,
        prefixes: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Nothing is started yet.

        Args:
            engine: `embedded`, or `mosquitto`: one with a disk.
            folder: For state and logs; stays.
            seed: Of the proxies' choices.
            devices: How many.
            slots: Calls that each runs at a time.
            detect_s: Silence after which a device counts as dead.
            standby: SAME_DISK, OWN_DISK or SYNCHRONOUS: a second controller; both stand by for
                the other. Empty: there is one controller.
            env: Environment variables of all services.
            prefixes: For some roles, a command (by its whole path) that runs their own.
        """
        self.engine = engine
        self.folder = folder
        self._devices = devices
        self.standby = standby
        self.proxies = Proxies(seed)
        if standby == SYNCHRONOUS:
            env = {**(env or {}), "FORAGE_SYNCHRONOUS": "true"}
        self.cluster = ProxiedCluster(
            self.proxies,
            prefixes or {},
            engine=engine,
            devices=devices,
            slots=slots,
            detect_s=detect_s,
            state_dir=folder / "cluster",
            env=env,
        )
        self.cluster.has_standby = bool(standby)
        self.pair: Pair | None = None
        """What the two controllers say, where there are two."""
        self.logs: dict[str, Log] = {}
        """Role → what each of the two has written in this round."""
        self.clients: list[Client] = []
        self.leaver: Leaver | None = None
        self.earlier: Earlier | None = None
        """What is left of the round before this one."""
        self.thawed_ns: dict[str, list[int]] = {}
        """Role → when it was thawed in this round, by CLOCK_BOOTTIME."""
        self.done: list[str] = []
        """What was done to it in this round, in order."""
        self._second: LocalProcess | None = None
        self._frozen: dict[str, None] = {}
        self._killed: dict[str, None] = {}
        """Roles that were sent SIGKILL, and that the kernel may not have ended yet."""

    def __enter__(self) -> Self:
        self.proxies.__enter__()
        try:
            if self.standby:
                names = [f"device-{number + 1}" for number in range(self._devices)]
                self.pair = Pair(self.proxies, self.standby, names)
            self.cluster.start()
            if self.pair is not None:
                self._start_standby()
            self.clients = [self.connect("client-a"), self.connect("client-b")]
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
        """End it all."""
        with contextlib.ExitStack() as ends:
            ends.callback(self.proxies.close)
            ends.callback(self.cluster.close)
            if self.leaver is not None:
                ends.callback(self.leaver.end)
            for client in self.clients:
                ends.callback(client.shutdown, wait=False, cancel_futures=True)

    def _start_standby(self) -> None:
        folder = self.folder / "cluster"
        of_first = folder / "controller" / "state"
        state_dir = str(of_first) if self.standby == SAME_DISK else "state"
        self._second = self.cluster.add_standby(folder, state_dir)
        self._second.begin()
        self.logs = {role: Log(self.services[role].log) for role in CONTROLLERS}
        self.wait_until_paired(READY_S)

    def connect(self, name: str) -> Client:
        """A client behind a proxy of this name."""
        return forage.connect(self.cluster.url_through(name), user="tester", timeout_s=READY_S)

    # -- who is there ---------------------------------------------------------------------------

    @property
    def services(self) -> dict[str, LocalProcess]:
        """By role."""
        assert self.cluster.broker is not None
        devices = {device.name: device for device in self.cluster.devices}
        found = {"broker": self.cluster.broker, "controller": self.cluster.controller, **devices}
        return found if self._second is None else {**found, "standby": self._second}

    def proxy(self, role: str) -> Proxy:
        """The one before this role."""
        return self.proxies.add(role)

    def begin_round(self) -> None:
        """Forget what was done and said in the one before."""
        self.done.clear()
        self.thawed_ns = {}
        for log in self.logs.values():
            log.begin()

    def launch_leaver(self, gate: Path, token: str, calls: int, tasks: int = 1) -> Leaver:
        """Start a client that may be killed."""
        url = self.cluster.url_through("leaver")
        self.leaver = Leaver(url, self.proxy("leaver"), gate, token, calls, tasks)
        return self.leaver

    # -- blows ------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """For the report of a failed round."""
        self.done.append(text)

    def strike(self, role: str, number: signal.Signals) -> None:
        """Send a signal to a role's own process at once; from any thread.

        Its workers, or a broker's mosquitto, are its own to take along: that is promised, too.
        """
        self.note(f"{number.name} {role}")
        if role == "leaver":
            if self.leaver is not None:
                self.leaver.signal(number)
            return
        service = self.services[role]
        if not service.is_running:
            return
        if number == signal.SIGKILL:
            self._killed[role] = None
        with contextlib.suppress(ProcessLookupError):
            os.kill(service.pid, number)
        if number == signal.SIGSTOP:
            self._frozen[role] = None
            service.freeze()
        elif number == signal.SIGCONT:
            self._thaw(role, service)

    def _thaw(self, role: str, service: LocalProcess) -> None:
        if role in self._frozen:
            del self._frozen[role]
            now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            self.thawed_ns.setdefault(role, []).append(now_ns)
        service.thaw()

    def revive(self, role: str, *, keeps_disk: bool = True) -> None:
        """Start it again if it does not run, without waiting until it is ready."""
        service = self.services.get(role)
        if service is None:
            return
        # What was struck dead a moment ago may not be known to be dead yet.
        service.kill()
        self._killed.pop(role, None)
        self._frozen.pop(role, None)
        if role == "broker" and not keeps_disk:
            self.forget_disk()
        self.note(f"start {role}" + ("" if keeps_disk else " without its disk"))
        service.begin()

    def forget_disk(self) -> None:
        """Whatever the broker had kept is gone."""
        (self.folder / "cluster" / "broker" / lasting_broker.FILE).unlink(missing_ok=True)

    # -- healing ----------------------------------------------------------------------------------

    def heal(self, *, spares_silent: bool = False) -> None:
        """Everything runs again, nothing stands between; returns before they have met again."""
        self.proxies.heal(spares_silent=spares_silent)
        for role, service in self.services.items():
            self._thaw(role, service)
        for role in self.dead():
            self.revive(role)
        self.note("heal")

    def dead(self) -> Sequence[str]:
        """The roles that do not run."""
        return [
            role
            for role, service in self.services.items()
            if role in self._killed or not is_alive(service)
        ]

    def wait_until_whole(self, limit_s: float) -> None:
        """Until the controller holds every device for alive; ForageError where it does not."""
        deadline_s = time.monotonic() + limit_s
        names = {device.name for device in self.cluster.devices}
        while True:
            for role in self.dead():
                # A device that was refused while its forerunner was not known to be gone.
                self.revive(role)
            try:
                alive = {row.name for row in self.clients[0].devices() if row.verdict == "alive"}
            except forage.NotConnected:
                alive = set()
            if names <= alive:
                return
            if time.monotonic() > deadline_s:
                raise forage.ForageError(f"only {sorted(alive)} are alive after {limit_s:g} s")
            time.sleep(0.02)

    def wait_until_paired(self, limit_s: float) -> None:
        """Until one controller rules and the other could take over; ForageError where not."""
        assert self.pair is not None
        deadline_s = time.monotonic() + limit_s
        while True:
            for role in self.dead():
                self.revive(role)
            _, why = self.pair.present()
            if not why:
                return
            if time.monotonic() > deadline_s:
                raise forage.ForageError(f"{why}, after {limit_s:g} s")
            time.sleep(0.02)

    def log_tails(self) -> str:
        """The ends of all services' logs."""
        tails = [f"--- {role}\n{each.log_tail()}" for role, each in self.services.items()]
        return "\n".join(tails)


def is_alive(service: LocalProcess) -> bool:
    """Whether its process is there, by the kernel's word rather than by a report under way."""
    if not service.is_running or not service.pid:
        return service.is_running
    try:
        state = Path(f"/proc/{service.pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return False
    return state != "Z"
