"""`LocalCluster`: a broker, a controller and devices as real processes of this machine."""

import os
import socket
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from forage.errors import ForageError
from forage.processes import START_LIMIT_S, STOP_LIMIT_S, Keeper, LocalProcess
from forage_wire.address import BrokerAddress, check_allowed, parse_broker_address
from forage_wire.topics import Topics, is_name

if TYPE_CHECKING:
    from forage.client import Client
    from forage.shell.network import Network

__all__ = ["ENGINES", "LocalCluster", "LocalDevice"]

ENGINES = ("auto", "embedded", "mosquitto")
DEVICES_MAX = 64
CONTROLLER = "main"
HOST = "127.0.0.1"

# What a service manager said to us is not for our services, nor are the user's own settings of
# forage: a cluster is the same on every machine.
_NOT_INHERITED = (
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "STATE_DIRECTORY",
    "JOURNAL_STREAM",
)


class LocalDevice(LocalProcess):
    """A device of a local cluster: an agent, with its workers."""


class LocalCluster:
    """Broker, controller and devices on this machine, for trying, testing and small work.

        with forage.LocalCluster(devices=3) as cluster:
            with cluster.client() as client:
                print(client.submit(pow, 2, 10).result())

    Every service is a process of its own, started afresh (so no `if __name__ == "__main__":` is
    needed), and none outlives this process, however it ends. Linux only.
    """

    def __init__(
        self,
        devices: int | Sequence[str] = 3,
        slots: int = 1,
        engine: str = "auto",
        broker: str | None = None,
        state_dir: str | os.PathLike[str] | None = None,
        detect_s: float | None = None,
        env: Mapping[str, str] | None = None,
        port: int = 0,
    ) -> None:
        """Say what it shall be; `with` or `start` starts it.

        Args:
            devices: How many, named device-1, device-2 and so on; or their names.
            slots: Calls that each device runs at a time.
            engine: The broker to start: `auto` (mosquitto where it is installed), `embedded` or
                `mosquitto`.
            broker: The address of a broker that is there already; none is started then.
            state_dir: Where the services keep state and logs, and what is left there at the end;
                None: a temporary directory that is removed.
            detect_s: Silence after which a device counts as dead; None: the controller's own
                choice (0.5 s on one machine).
            env: Environment variables for all services, over this process's own. FORAGE_*
                variables of this process are not passed on; those given here are.
            port: Of the broker that is started, on 127.0.0.1; 0: a free one.

        Raises:
            ValueError: An argument is not usable.
            ForageError: This is not Linux.
        """
        if not sys.platform.startswith("linux"):
            raise ForageError(
                f"LocalCluster needs Linux (this is {sys.platform}): agents fork warm workers and "
                "depend on the kernel to end them. Run the cluster on a Linux machine and use "
                "forage.connect() here."
            )
        self._names = _device_names(devices)
        if slots < 1:
            raise ValueError(f"slots is a number of calls from 1, not {slots}.")
        if engine not in ENGINES:
            raise ValueError(f"engine is {engine!r}, but must be one of {', '.join(ENGINES)}.")
        self._slots = slots
        self._engine = engine
        self._detect_s = detect_s
        self._given_env = dict(env or {})
        self._port = port
        self._address: BrokerAddress | None = None
        if broker is not None:
            self._address = parse_broker_address(broker)
            check_allowed(self._address, insecure=False)
        self._broker_argument = broker
        self._state_dir = None if state_dir is None else Path(state_dir).absolute()
        self._topics = Topics(self._given_env.get("FORAGE_ROOT") or "forage")
        self._networks: weakref.WeakSet[Network] = weakref.WeakSet()
        self._keeper: Keeper | None = None
        self._end: weakref.finalize[..., LocalCluster] | None = None

        self.devices: list[LocalDevice] = []
        """In the order of their names; empty before the start."""
        self.controller: LocalProcess
        """There after the start."""
        self.broker: LocalProcess | None = None
        """None where the broker is not this cluster's own."""

    # -- what users ask it ------------------------------------------------------------------------

    @property
    def broker_url(self) -> str:
        """What `forage.connect` and `--broker` take; known once it has started."""
        if self._broker_argument is not None:
            return self._broker_argument
        if self._address is None:
            raise ForageError("The local cluster has not started; use it in a with statement.")
        return str(self._address)

    def client(self) -> "Client":
        """A new client of this cluster; use it in a with statement, or `shutdown` it.

        One that is open when the cluster is closed ends then, and its open calls are cancelled.
        """
        from forage.connecting import connect

        client = connect(self.broker_url, root=self._topics.root)
        # Not the client: its batches and futures may outlive it, and wait on the connection.
        self._networks.add(client._network)
        return client

    def device(self, name: str) -> LocalDevice:
        """One of the devices; LookupError where there is none of that name."""
        for device in self.devices:
            if device.name == name:
                return device
        raise LookupError(f"The cluster has no device {name!r}: {', '.join(self._names)}.")

    # -- its life -----------------------------------------------------------------------------------

    def start(self) -> "LocalCluster":
        """Start everything; returns itself once the controller knows all devices.

        Raises:
            ForageError: A service ended, or not all was ready within 30 s; with the end of the log
                of the service concerned.
        """
        if self._keeper is not None:
            raise ForageError("This local cluster was started before; make a new one.")
        deadline_s = time.monotonic() + START_LIMIT_S
        folder = self._state_dir
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="forage-"))
        folder.mkdir(parents=True, exist_ok=True)
        keeper = Keeper(folder_to_remove=folder if self._state_dir is None else None)
        self._keeper = keeper
        self._end = weakref.finalize(self, keeper.close)
        try:
            self._start_services(keeper, folder, deadline_s)
        except BaseException:
            self._end()
            raise
        return self

    def close(self) -> None:
        """End clients and services and remove the temporary directory; again is no error."""
        if self._end is None or not self._end.alive:
            return
        networks = list(self._networks)
        for network in networks:
            # Nobody is left to end these calls, so who waits for one would wait for ever.
            network.close(wait=False)
            # First here: of a task that its own client has cancelled, nothing is kept for others.
            network.cancel_attached()
        for network in networks:
            network.cancel_all(force=True)
        try:
            self._stop([*self.devices, self.controller])
            if self.broker is not None:
                self._stop([self.broker])
        finally:
            self._end()

    def __enter__(self) -> "LocalCluster":
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        where = "not started" if self._address is None else str(self._address)
        return f"<LocalCluster {where}, {len(self._names)} devices>"

    # -- how it starts and ends -----------------------------------------------------------------------

    def _start_services(self, keeper: Keeper, folder: Path, deadline_s: float) -> None:
        temporary = folder / "tmp"
        temporary.mkdir(exist_ok=True)
        environment = self._environment(temporary)

        def settings(name: str) -> dict[str, Any]:
            return {"environment": environment, "folder": folder / name}

        self.controller = LocalProcess(
            "controller", keeper, command=self._controller_command, **settings("controller")
        )
        self.devices = [
            LocalDevice(name, keeper, command=partial(self._device_command, name), **settings(name))
            for name in self._names
        ]
        services = [self.controller, *self.devices]
        watched = services
        if self._address is None:
            self.broker = LocalProcess(
                "broker", keeper, command=self._broker_command, **settings("broker")
            )
            watched = [self.broker, *services]
            self._begin_with_broker(self.broker, services, deadline_s)
        assert self._address is not None
        # Costs more than the start of the processes, so it is loaded while they load theirs.
        from forage.watching import DeviceWatch

        with DeviceWatch(
            self._address, self._topics, CONTROLLER, believes_retained=self.broker is not None
        ) as watch:
            keeper.on_change = watch.wake
            try:
                if self.broker is None:
                    # Only then can what was retained before be told from what is said of ours.
                    watch.subscribe(deadline_s)
                    for service in services:
                        service.begin()
                watch.wait_for(self._names, watched, deadline_s)
            finally:
                keeper.on_change = None

    def _begin_with_broker(
        self, broker: LocalProcess, services: Sequence[LocalProcess], deadline_s: float
    ) -> None:
        """Begin all at once, so that they load while the broker does; return when it is ready."""
        with socket.socket() as reservation:
            # Bound and not listening: nobody else gets this port, but the broker does.
            reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                reservation.bind((HOST, self._port))
            except OSError:
                # Somebody else's. The broker finds the words; nobody shall connect to that one.
                self._address = BrokerAddress(host=HOST, port=self._port)
                broker.begin()
                broker.wait_until_ready(deadline_s)
            else:
                self._address = BrokerAddress(host=HOST, port=reservation.getsockname()[1])
                broker.begin()
            for service in services:
                service.begin()
            broker.wait_until_ready(deadline_s)

    def _stop(self, services: Sequence[LocalProcess]) -> None:
        """Ask all of them, then wait for all of them."""
        deadline_s = time.monotonic() + STOP_LIMIT_S
        for service in services:
            service.begin_stop()
        for service in services:
            service.finish_stop(deadline_s)

    def _environment(self, temporary: Path) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("FORAGE_") and name not in _NOT_INHERITED
        }
        own = {
            "FORAGE_CONFIG": os.devnull,  # An empty file in place of the system's.
            "TMPDIR": str(temporary),  # So that what the killed leave there ends with the cluster.
        }
        return {**inherited, **own, **self._given_env}

    def _broker_command(self) -> list[str]:
        assert self._address is not None
        port = str(self._address.port)
        return _python("forage_broker", "--engine", self._engine, "--host", HOST, "--port", port)

    def _service_command(self, module: str, name: str, *flags: str) -> list[str]:
        # The state lies in the working directory of each.
        return _python(
            module, "--broker", self.broker_url, "--name", name, "--state-dir", "state", *flags
        )

    def _controller_command(self) -> list[str]:
        detect_s = "auto" if self._detect_s is None else f"{self._detect_s:g}"
        flags = ("--detect-s", detect_s)
        return self._service_command("forage_controller", CONTROLLER, *flags)

    def _device_command(self, name: str) -> list[str]:
        return self._service_command("forage_agent", name, "--slots", str(self._slots))


def _python(module: str, *flags: str) -> list[str]:
    # `-P`: what lies in the working directory is not to be imported in place of a library.
    return [sys.executable, "-P", "-m", module, *flags]


def _device_names(devices: int | Sequence[str]) -> list[str]:
    if isinstance(devices, int):
        names = [f"device-{number}" for number in range(1, devices + 1)]
    else:
        names = list(devices)
    for name in names:
        if not is_name(name):
            raise ValueError(
                f"The device name {name!r} is not usable: use 1 to 32 of a-z, 0-9, _ and -, and "
                "begin with a letter or digit."
            )
        if name in ("broker", "controller"):
            raise ValueError(f"The device name {name!r} is that of a service; choose another.")
    if len(set(names)) < len(names):
        raise ValueError(f"Two devices of one name: {', '.join(names)}.")
    if len(names) > DEVICES_MAX:
        raise ValueError(f"A local cluster has at most {DEVICES_MAX} devices, not {len(names)}.")
    return names
