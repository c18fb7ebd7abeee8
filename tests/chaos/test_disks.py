"""The controller's disk: its power is cut, it lies, it fails, it is full.

Power is cut with the kernel's own means, a shutdown of a loop-mounted file system: what was not
flushed is gone. A disk that lies about flushing is the negative control, which must lose something,
or the test could not see a loss.
"""

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path

import pytest

from chaos.ground import Ground, Leaver
from forage import ForageError, Future, Refused
from integration.observing import until

LIMIT_S = 60.0
TASKS = 120
SHUTDOWN_IOCTL = 0x8004587D
WITHOUT_FLUSHING_THE_JOURNAL = 2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


class Disk:
    """A file system in a file, mounted at a path."""

    def __init__(self, image: Path, mount_point: Path) -> None:
        self.image = image
        self.mount_point = mount_point
        with image.open("wb") as stream:
            stream.truncate(64 << 20)
        made = run("mkfs.ext4", "-q", "-F", str(image))
        if made.returncode:
            pytest.skip(f"mkfs.ext4: {made.stderr.strip()}")
        mount_point.mkdir(parents=True)
        self.mount()

    def mount(self) -> None:
        done = run("mount", "-o", "loop", str(self.image), str(self.mount_point))
        if done.returncode:
            pytest.skip(f"no loop mounts here: {done.stderr.strip()}")

    def cut_power(self) -> None:
        """From here on nothing reaches the disk, and what it had not been made to keep is gone."""
        handle = os.open(self.mount_point, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, SHUTDOWN_IOCTL, struct.pack("I", WITHOUT_FLUSHING_THE_JOURNAL))
        finally:
            os.close(handle)

    def remount(self) -> None:
        """As after a restart of the machine.

        A mount namespace that another test has just made may hold the dead file system a little
        longer; what is mounted meanwhile is that one again.
        """
        deadline_s = time.monotonic() + LIMIT_S
        while True:
            self.unmount()
            self.mount()
            try:
                os.close(os.open(self.mount_point, os.O_RDWR | os.O_TMPFILE))
            except OSError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.05)
            else:
                return

    def unmount(self) -> None:
        deadline_s = time.monotonic() + LIMIT_S
        while run("umount", str(self.mount_point)).returncode:
            assert time.monotonic() < deadline_s, "the file system stays busy"
            time.sleep(0.05)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is not installed (Debian: apt install e2fsprogs)")
    disk = Disk(tmp_path / "image", tmp_path / "cluster" / "controller")
    yield disk
    run("umount", "-l", str(disk.mount_point))


@contextlib.contextmanager
def injected(pid: int, fault: str) -> Iterator[None]:
    """From here on the kernel answers some system calls of a running process as `fault` says."""
    program = shutil.which("strace")
    if program is None:
        pytest.skip("strace is not installed")
    command = [program, "-f", "-o", "/dev/null", "-e", f"trace={fault.partition(':')[0]}"]
    command += ["-e", f"inject={fault}", "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        line = tracer.stderr.readline()
        if "attached" not in line:
            tracer.kill()
            pytest.skip(f"strace cannot attach here: {line.strip()}")
        try:
            yield
        finally:
            tracer.terminate()


def collect(ground: Ground, tmp_path: Path) -> tuple[int, int]:
    """How many of the acknowledged tasks end as they should for another client, and how many not."""
    leaver = ground.leaver
    assert leaver is not None
    (tmp_path / "gate").touch()
    kept = lost = 0
    for task in sorted(leaver.acknowledged):
        try:
            found = ground.clients[0].attach(task).results(timeout=LIMIT_S)
        except Refused:
            lost += 1
        else:
            assert found == ["lasting 0", "lasting 1"]
            kept += 1
    return kept, lost


def hand_over(ground: Ground, tmp_path: Path) -> Leaver:
    """A client begins to hand over one task after the other; some are acknowledged already."""
    leaver = ground.launch_leaver(tmp_path / "gate", "lasting", calls=2, tasks=4 * TASKS)
    until(lambda: len(leaver.acknowledged) >= TASKS, f"{TASKS} acknowledged tasks")
    return leaver


def cut_power(ground: Ground, disk: Disk, leaver: Leaver) -> None:
    """The controller's host loses its power, the client dies, and the controller comes back."""
    disk.cut_power()
    leaver.end()
    ground.cluster.controller.kill()
    disk.remount()
    ground.cluster.controller.start()


def test_what_was_acknowledged_survives_a_power_cut(disk: Disk, tmp_path: Path) -> None:
    with Ground("embedded", tmp_path, devices=2) as ground:
        leaver = hand_over(ground, tmp_path)
        cut_power(ground, disk, leaver)
        assert collect(ground, tmp_path) == (len(leaver.acknowledged), 0)


def test_of_a_disk_that_lies_about_flushing_a_power_cut_is_seen_to_lose(
    disk: Disk, tmp_path: Path
) -> None:
    with Ground("embedded", tmp_path, devices=2) as ground:
        with injected(ground.cluster.controller.pid, "fsync,fdatasync:retval=0"):
            leaver = hand_over(ground, tmp_path)
            try:
                cut_power(ground, disk, leaver)
            except ForageError:
                # Torn in its middle, the store may not even be readable: all of it is lost.
                assert "cannot be used" in ground.cluster.controller.log_tail()
                return
        _kept, lost = collect(ground, tmp_path)
        assert lost > 0


@pytest.mark.parametrize("calls", ["fsync,fdatasync", "pwrite64"])
def test_a_disk_that_fails_ends_the_controller_and_loses_nothing(
    tmp_path: Path, calls: str
) -> None:
    with Ground("embedded", tmp_path, devices=2) as ground:
        controller = ground.cluster.controller
        leaver = hand_over(ground, tmp_path)
        with injected(controller.pid, f"{calls}:error=EIO"):
            late = ground.clients[0].submit(pow, 2, 5)
            until(lambda: controller.exit_code is not None, "the controller's end")
        # A supervisor starts it again: after a flush that failed nobody knows what is on the disk.
        assert controller.exit_code == 1, controller.log_tail()
        assert "check the disk" in controller.log_tail()
        leaver.end()
        controller.start()
        assert collect(ground, tmp_path) == (len(leaver.acknowledged), 0)
        assert late.result(LIMIT_S) == 32


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """4 MiB for the controller's state, half of which something else takes."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    folder = tmp_path / "cluster" / "controller"
    folder.mkdir(parents=True)
    if run("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)).returncode:
        pytest.skip("no small file systems here")
    (folder / "ballast").write_bytes(bytes(2 << 20))
    yield folder
    run("umount", "-l", str(folder))


def test_a_full_disk_takes_no_new_tasks_loses_none_and_goes_on_when_there_is_room(
    small: Path, tmp_path: Path
) -> None:
    gate = str(tmp_path / "gate")
    with Ground("embedded", tmp_path, devices=2) as ground:
        client = ground.clients[0]
        futures: list[Future[int]] = []

        def is_refused() -> bool:
            futures.append(client.submit(wait_and_measure, gate, os.urandom(50_000)))
            # What is refused fails at once, and nothing else does.
            return wait(futures[-1:], timeout=0.1).done != set()

        until(is_refused, "a refusal")
        refusal = futures.pop().exception()
        assert isinstance(refusal, Refused)
        assert "is full" in str(refusal)
        # It answers, also while it waits for room, and started anew it says why it cannot.
        assert {row.verdict for row in client.devices()} == {"alive"}
        ground.cluster.controller.kill()
        # What its last life had not folded yet may or may not give it some room; else it says so.
        complaint = ""
        try:
            ground.cluster.controller.start()
        except ForageError as error:
            complaint = str(error)
        assert ("is full" in complaint) == (ground.cluster.controller.exit_code == 1)
        (small / "ballast").unlink()
        if not ground.cluster.controller.is_running:
            ground.cluster.controller.start()
        (tmp_path / "gate").touch()
        assert [future.result(LIMIT_S) for future in futures] == [50_000] * len(futures)
        assert client.submit(len, bytes(9)).result(LIMIT_S) == 9


def test_a_full_disk_that_gets_room_goes_on_by_itself(small: Path, tmp_path: Path) -> None:
    gate = str(tmp_path / "gate")
    with Ground("embedded", tmp_path, devices=2) as ground:
        client = ground.clients[0]
        batch = client.submit_all(wait_and_measure, [gate] * 60, [os.urandom(50_000)] * 60)
        controller = ground.cluster.controller
        until(lambda: "no new tasks are taken" in controller.log_tail(), "a full disk")
        (small / "ballast").unlink()
        until(lambda: "new tasks are taken" in controller.log_tail().splitlines()[-1], "room")
        (tmp_path / "gate").touch()
        assert batch.results(timeout=LIMIT_S) == [50_000] * 60


def wait_and_measure(gate: str, data: bytes) -> int:
    while not Path(gate).exists():
        time.sleep(0.02)
    return len(data)
