"""`forage demo`: real work on real processes, one of which is killed on the way.

Every source file of this Python's standard library is measured by devices on this machine; their
report has to equal the one that is computed here without them.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forage import LocalCluster
from forage.cli.demo_screen import DeviceRow, Screen, screen
from forage.cli.endings import EXIT_FAILED, Ending
from forage.cli.listening import Listener, Received
from forage.config import read_config
from forage.demo_job import (
    analyse,
    chosen_files,
    library_folder,
    merge,
    name_of,
    report_lines,
)
from forage_wire.codec import decode_json
from forage_wire.documents import DeviceVerdict
from forage_wire.errors import DecodeError, Refused
from forage_wire.topics import Topics

if TYPE_CHECKING:
    from forage import Batch, Client
    from forage.cluster import LocalDevice

__all__ = ["command"]

_KILL_AT = 0.4
"""Of the work."""
_LOOK_EVERY_S = 0.05
_DRAW_EVERY_S = 0.25
"""Less often, for a picture costs the controller two questions."""
_PROCESSES_MAX = 8
"""For the comparison."""
_ROOT = "forage"

_NEXT = (
    ("forage up", "a broker, a controller and 4 devices here, until Ctrl-C"),
    ("forage run math:factorial 30", "one call on one of them, from another terminal"),
    ("forage watch", "everything that they say to each other"),
)


@click.command("demo")
@click.option("--devices", type=click.IntRange(2, 16), default=3, show_default=True)
@click.option(
    "--engine",
    type=click.Choice(["auto", "embedded", "mosquitto"]),
    default="auto",
    show_default=True,
    help="The broker; auto: mosquitto where it is installed.",
)
@click.option("--files", type=click.IntRange(20), hidden=True, help="Only so many files.")
def command(devices: int, engine: str, files: int | None) -> None:
    """See it work: the standard library measured by devices here, one of them killed on the way.

    Starts a broker, a controller and devices as processes of this machine, and ends them all.
    Nothing is downloaded and nothing is left behind.
    """
    began = time.monotonic()
    folder = library_folder()
    paths = chosen_files(folder, files)
    with screen(began) as shown:
        megabytes = sum(path.stat().st_size for path in paths) / 1e6
        shown.text(
            f"The standard library of Python {sys.version.split()[0]}: {len(paths):,} files, "
            f"{megabytes:.1f} MB, to be measured by {devices} devices.",
            style="bold",
        )
        report, remote_s = _by_devices(paths, folder, devices, engine, shown)
        local_report, local_s = _here(files, len(paths), shown)
        _compare(report, local_report)
        shown.event("both reports are equal", style="bold green")
        shown.text()
        for line in report_lines(report):
            shown.text(line)
        shown.text()
        shown.text(
            f"{remote_s:.1f} s by {devices} devices, one of them killed on the way; {local_s:.1f} s "
            f"to compare it here; {time.monotonic() - began:.1f} s in all."
        )
        shown.text()
        shown.text("Type next:", style="bold")
        for words, meaning in _NEXT:
            shown.text(f"  {words:<30} {meaning}")


# -- by devices ---------------------------------------------------------------------------------


def _by_devices(
    paths: Sequence[Path], folder: Path, devices: int, engine: str, shown: Screen
) -> tuple[dict[str, Any], float]:
    """The report as the fleet makes it, and how long that took in seconds."""
    shown.event(f"starting a broker, a controller and {devices} devices")
    with LocalCluster(devices=devices, engine=engine) as cluster:
        shown.event(
            f"ready at {cluster.broker_url}: "
            + ", ".join(f"{device.name} (pid {device.pid})" for device in cluster.devices)
        )
        with cluster.client() as client, _verdicts(cluster, shown) as verdicts:
            began = time.monotonic()
            batch = client.submit_all(
                analyse,
                (name_of(path, folder) for path in paths),
                (path.read_bytes() for path in paths),
            )
            try:
                run = _Run(cluster, client, batch, verdicts, shown)
                run.follow()
            except BaseException:
                batch.cancel(force=True)
                raise
            took_s = time.monotonic() - began
            run.conclude(took_s)
            report = merge(batch.results())
    return report, took_s


class _Verdicts:
    """When the controller gave up which device, by its own word."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._dead: dict[str, tuple[float, str]] = {}

    def note(self, device: str, verdict: DeviceVerdict) -> None:
        """The controller said something of a device."""
        with self._condition:
            if verdict.verdict == "dead":
                self._dead[device] = (time.monotonic(), verdict.why)
            self._condition.notify_all()

    def dead(self, device: str) -> tuple[float, str] | None:
        """(moment, why) of a dead device."""
        with self._condition:
            return self._dead.get(device)


@contextmanager
def _verdicts(cluster: LocalCluster, shown: Screen) -> Iterator[_Verdicts]:
    topics = Topics(_ROOT)
    found = _Verdicts()

    def take(message: Received) -> None:
        parsed = topics.parse(message.topic)
        try:
            verdict = decode_json(message.payload, DeviceVerdict)
        except DecodeError:
            return
        if parsed is not None and not message.retain:
            found.note(parsed.device, verdict)

    config = read_config(broker=cluster.broker_url, root=_ROOT)
    with Listener(config, [topics.verdict("+", "+")], take, on_change=shown.event):
        yield found


class _Run:
    """One batch on its way: looks at it, kills a device, and tells what becomes of its work."""

    def __init__(
        self,
        cluster: LocalCluster,
        client: "Client",
        batch: "Batch[dict[str, Any]]",
        verdicts: _Verdicts,
        shown: Screen,
    ) -> None:
        self._cluster = cluster
        self._client = client
        self._batch = batch
        self._verdicts = verdicts
        self._shown = shown
        self._killed: LocalDevice | None = None
        self._killed_at = 0.0
        self._death_told = False
        self._lost: dict[int, str] = {}
        """Calls that the killed device held, and who got them then."""
        self._lost_told = False

    def follow(self) -> None:
        """Return when every call has ended."""
        draw_at = 0.0
        while not self._batch.wait(_LOOK_EVERY_S):
            progress = self._batch.progress()
            if self._killed is None and progress.done >= _KILL_AT * progress.total:
                self._kill_one()
            self._look_after_the_dead()
            if time.monotonic() >= draw_at:
                draw_at = time.monotonic() + _DRAW_EVERY_S
                self._draw()
        self._look_after_the_dead()
        self._draw()

    def conclude(self, took_s: float) -> None:
        """What is to be said when all has ended."""
        killed = self._killed
        if killed is None:
            raise Ending(
                "All files were done before a device could be killed while it held work: this "
                "machine is too quick for so few files; leave --files away.",
                EXIT_FAILED,
            )
        shares = Counter(future.device for future in self._batch)
        total = len(self._batch)
        self._shown.event(
            f"{total:,} of {total:,} files done in {took_s:.1f} s: "
            + ", ".join(
                f"{shares[device.name]:,} by {device.name}" for device in self._cluster.devices
            )
        )

    def _kill_one(self) -> None:
        """SIGKILL to the device that holds most, at a moment when it does hold work."""
        for row in sorted(self._client.devices(), key=lambda row: -row.active_tasks):
            device = self._cluster.device(row.name)
            # Frozen, it cannot finish what it holds between the look and the blow.
            device.freeze()
            # The first answer may have overtaken what the device had sent before; by the second
            # one all of that has arrived, so what it then holds is lost with it.
            self._client.device(row.name)
            if self._client.device(row.name).active_tasks:
                self._killed = device
                self._killed_at = time.monotonic()
                device.kill()
                self._shown.event(
                    f"SIGKILL to {device.name} (pid {device.pid}) in the middle of its work",
                    style="bold red",
                )
                return
            device.thaw()

    def _look_after_the_dead(self) -> None:
        """Tell when the controller knew, and who got the work."""
        killed = self._killed
        dead = None if killed is None else self._verdicts.dead(killed.name)
        if killed is None or dead is None or self._lost_told:
            return
        moment, why = dead
        if not self._death_told:
            self._death_told = True
            waited_ms = max(0.0, moment - self._killed_at) * 1000
            self._shown.event(
                f"the controller declares {killed.name} dead {waited_ms:.0f} ms later ({why})"
            )
        self._note_attempts(killed.name, why)
        counts = Counter(self._lost.values())
        if self._lost and not counts[""]:
            self._lost_told = True
            whom = " and ".join(f"{_files(n)} to {name}" for name, n in sorted(counts.items()))
            self._shown.event(f"the work it held is given to others: {whom}", style="bold yellow")

    def _note_attempts(self, killed: str, why: str) -> None:
        """What the dead device held, by the controller's word, and who has it now."""
        try:
            attempts = self._client.history(self._batch.id)
        except Refused:
            attempts = []  # All outcomes are here, and the controller has forgotten the task.
        for attempt in attempts:
            for index in range(attempt.low, attempt.high):
                if attempt.device == killed and attempt.how == why:
                    self._lost.setdefault(index, "")
                elif attempt.device != killed and index in self._lost:
                    self._lost[index] = attempt.device
        for index in [index for index, name in self._lost.items() if not name]:
            future = self._batch[index]
            if not future.done():
                continue
            if future.device == killed:
                # Its outcome was on its way already: it was held, but not lost.
                del self._lost[index]
            elif future.device is not None:
                self._lost[index] = future.device

    def _draw(self) -> None:
        progress = self._batch.progress()
        try:
            shares = self._client.task(self._batch.id).devices
        except Refused:  # As in `_note_attempts`.
            shares = Counter(future.device or "" for future in self._batch)
        known = {row.name: row for row in self._client.devices()}
        rows = []
        for device in self._cluster.devices:
            info = known.get(device.name)
            rows.append(
                DeviceRow(
                    name=device.name,
                    pid=device.pid,
                    state="killed" if device is self._killed else info.state if info else "-",
                    holds=info.active_tasks if info and device is not self._killed else 0,
                    done=shares.get(device.name, 0),
                )
            )
        self._shown.picture("files", progress.done, progress.total, rows)


def _files(count: int) -> str:
    return f"{count} file" + ("" if count == 1 else "s")


# -- here, for comparison -----------------------------------------------------------------------


def _here(files: int | None, total: int, shown: Screen) -> tuple[dict[str, Any], float]:
    """The report as this machine makes it without forage, and how long that took in seconds."""
    began = time.monotonic()
    shares = min(_PROCESSES_MAX, len(os.sched_getaffinity(0)))
    shown.event(f"the same without forage, in {shares} processes of this machine, to compare")
    processes = [
        subprocess.Popen(
            # `-P`: what lies in the working directory is not to be imported.
            [
                sys.executable,
                "-P",
                "-m",
                "forage.demo_job",
                str(share),
                str(shares),
                str(files or 0),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            # Ctrl-C is for us: it would end an interpreter that is just starting in a traceback.
            # We end them, and where we are killed their pipe breaks.
            process_group=0,
        )
        for share in range(shares)
    ]
    findings: list[dict[str, Any]] = []
    try:
        _gather(processes, findings, total, shown)
    finally:
        for process in processes:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
    return merge(findings), time.monotonic() - began


def _gather(
    processes: "Sequence[subprocess.Popen[str]]",
    findings: list[dict[str, Any]],
    total: int,
    shown: Screen,
) -> None:
    """Read what they find until all have ended."""

    def read(process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        # One by one, for their number is looked at meanwhile.
        for line in process.stdout:
            findings.append(json.loads(line))  # noqa: PERF401

    readers = [threading.Thread(target=read, args=(process,)) for process in processes]
    for reader in readers:
        reader.start()
    for reader in readers:
        while reader.is_alive():
            reader.join(_DRAW_EVERY_S)
            shown.picture("files", len(findings), total, [])
    for process in processes:
        if process.wait() != 0:
            raise Ending(
                f"The comparison failed: `python -m forage.demo_job` ended with exit code "
                f"{process.returncode}.",
                EXIT_FAILED,
            )


def _compare(report: dict[str, Any], local_report: dict[str, Any]) -> None:
    if report == local_report:
        return
    different = [key for key in report if report[key] != local_report[key]]
    raise Ending(
        "The devices' report is not the one computed here: "
        + "; ".join(f"{key} {report[key]} there, {local_report[key]} here" for key in different)
        + ". This is a defect of forage; please report it.",
        EXIT_FAILED,
    )
