"""A standby's store: groups are saved to it as they come, and a snapshot takes its place.

While the file `fed` stands beside it, the store holds what an active controller gave. A store that
this machine ruled with itself is not thrown away for that: it stays as `replaced.db` (until the
next one is).
"""

import os
from collections.abc import Callable
from pathlib import Path

from forage_controller.core.feed import InstallSnapshot, SnapshotInstalled, WriteSnapshot
from forage_controller.core.operations import Save, SaveFailed
from forage_controller.shell.database import StateDirectory
from forage_controller.shell.store import Store, StoreError, StoreEvent

__all__ = ["Replica"]

INCOMING = "incoming.db"
REPLACED = "replaced.db"
FED = "fed"


class Replica:
    """Everything is called from the loop's thread; events come through `post`."""

    def __init__(
        self,
        directory: Path,
        start: str,
        post: Callable[[StoreEvent | SnapshotInstalled], None],
    ) -> None:
        """Lock the directory and open what is there.

        Raises StoreError as `Store` does; StateInUse where another process has it.
        """
        self._post = post
        self._directory = StateDirectory(directory, start)
        self._fed = directory / FED
        self._incoming = directory / INCOMING
        self._descriptor: int | None = None
        self._store: Store | None = None
        try:
            self._open()
        except BaseException:
            self._directory.close()
            raise

    def _open(self) -> None:
        self._store = Store(self._directory.path, self._post, held=self._directory)
        self.epoch = self._store.recover().epoch
        """That the store holds."""

    @property
    def is_copy(self) -> bool:
        """Whether the store is what another controller gave, and not ruled with since."""
        return self._fed.exists()

    def start(self) -> None:
        """Begin to commit."""
        if self._store is not None:
            self._store.start()

    def execute(self, command: Save | WriteSnapshot | InstallSnapshot) -> None:
        """Take a command, in order."""
        if isinstance(command, Save):
            if self._store is not None:
                self._store.execute(command)
            return
        try:
            if isinstance(command, WriteSnapshot):
                self._write(command)
            else:
                self._install()
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            self._post(SaveFailed(reason=f"{self._incoming} cannot be written ({reason})."))
        except StoreError as error:
            self._post(SaveFailed(reason=str(error)))

    def flush(self) -> None:
        """Hand over what was taken."""
        if self._store is not None:
            self._store.flush()

    def _write(self, command: WriteSnapshot) -> None:
        if command.offset == 0:
            self._drop_incoming()
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            self._descriptor = os.open(self._incoming, flags, 0o600)
        if self._descriptor is None:
            return  # It could not be made, which has been said.
        data = memoryview(command.data)
        while data:
            data = data[
                os.pwrite(self._descriptor, data, command.offset + len(command.data) - len(data)) :
            ]

    def _drop_incoming(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._incoming.unlink(missing_ok=True)

    def _install(self) -> None:
        """The copy is whole: on the disk first, then in the place of what was there."""
        if self._descriptor is None:
            return
        os.fsync(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = None
        if self._store is not None:
            self._store.close()
            self._store = None
        file = self._directory.file
        replaced = file.with_name(REPLACED)
        is_own = self.epoch > 0 and not self._fed.exists()
        for suffix in ("-wal", "-shm", ""):
            old = file.with_name(file.name + suffix)
            if is_own and old.exists() and suffix != "-shm":
                os.replace(old, replaced.with_name(replaced.name + suffix))
            else:
                old.unlink(missing_ok=True)
                if is_own:
                    replaced.with_name(replaced.name + suffix).unlink(missing_ok=True)
        self._fed.touch()
        os.replace(self._incoming, file)
        self._sync()
        self._open()
        self.start()
        self._post(SnapshotInstalled(epoch=self.epoch))

    def _sync(self) -> None:
        descriptor = os.open(self._directory.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def close(self, *, rules: bool) -> None:
        """Commit what is left and let the directory go; `rules`: the store is our own from here."""
        if self._store is not None:
            self._store.close()
        self._drop_incoming()
        if rules:
            self._fed.unlink(missing_ok=True)
            self._sync()
        self._directory.close()
