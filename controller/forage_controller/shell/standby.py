"""A controller that stands by, as a process: its core, and the store that it is fed.

Where its own state directory is free it keeps a copy there. Where another controller has that very
directory it waits for it, and watches the bus alone.
"""

import logging
import os
import sys
from random import Random
from typing import Any

from forage_controller.config import ControllerConfig
from forage_controller.core.feed import InstallSnapshot, WriteSnapshot
from forage_controller.core.operations import Save
from forage_controller.core.orders import EndHolder, TakeOver
from forage_controller.core.standby import StandbyCore
from forage_controller.shell.database import StateInUse
from forage_controller.shell.holder import end_holder, wait_for_lock
from forage_controller.shell.program import Identity, Program, now_ms
from forage_controller.shell.replica import Replica
from forage_wire.shell.notify import sd_notify

__all__ = ["Standby"]

logger = logging.getLogger(__name__)

DETECT_LOOPBACK_MS = 500
DETECT_MS = 15_000


class Standby(Program):
    """`run` until it is to rule (`takes_over`), told to stop, or its core ends it."""

    def __init__(
        self, config: ControllerConfig, identity: Identity, *, gave_way: bool = False
    ) -> None:
        """Open the store, or wait for it; nothing is opened towards the broker yet.

        Args:
            config: The settings.
            identity: This process start.
            gave_way: Whether another rules in our place, so that our store may be old.

        Raises:
            StoreError: The state directory cannot be used.
        """
        self._replica: Replica | None = None
        self._waits = ""
        try:
            self._replica = Replica(config.state_dir, identity.start, self.put)
        except StateInUse as error:
            self._waits = str(error)
        detect_ms = config.core.detect_ms
        if detect_ms is None:
            detect_ms = DETECT_LOOPBACK_MS if config.broker.is_loopback else DETECT_MS
        self._standing = StandbyCore(
            config.core,
            identity.start,
            detect_ms=detect_ms,
            copies=self._replica is not None,
            epoch=0 if self._replica is None else self._replica.epoch,
            is_copy=self._replica is not None and (gave_way or self._replica.is_copy),
        )
        subscriptions = self._standing.topics.standby_subscriptions(config.core.name)
        random = Random(f"{identity.start}-{identity.client_id_part}")
        super().__init__(config, identity, self._standing, subscriptions, random)
        self._is_announced = False
        self._has_lock = False
        self.takes_over = False
        """Whether this process is to rule now."""
        self.epoch = 0
        """The highest epoch that others are known to have used."""
        self.took_over_ms: int | None = None
        """When that was decided with a copy that lacked nothing; None: it may be old, or is none."""

    def begin(self) -> None:
        """Begin to commit, or to wait for the lock."""
        if self._replica is not None:
            self._replica.start()
            return
        logger.info("waiting for the state directory: %s", self._waits)
        wait_for_lock(self._config.state_dir, self._on_lock_freed)

    def _on_lock_freed(self) -> None:
        """In a thread of its own."""
        self._has_lock = True
        self._loop.wake()

    def _turn(self) -> None:
        if self._has_lock and self._stop_code is None:
            self._rule("the state directory is free")
            return
        super()._turn()

    def carry_out(self, command: Any) -> None:
        """The store's commands, and what is ours alone."""
        match command:
            case Save() | WriteSnapshot() | InstallSnapshot():
                if self._replica is not None:
                    self._replica.execute(command)
            case TakeOver():
                self.epoch = command.epoch
                self.took_over_ms = now_ms() if command.is_current else None
                self._rule(command.reason)
            case EndHolder():
                logger.warning(
                    "%s: %s", command.reason, end_holder(self._config.state_dir, command.start)
                )
            case _:
                raise AssertionError(f"an unknown command: {command!r}")

    def carried_out(self) -> None:
        """Hand over what is to be stored; say once that we stand by."""
        if self._replica is not None and not self.takes_over:
            self._replica.flush()
        if not self._is_announced and self._standing.is_connected:
            self._announce()

    def _announce(self) -> None:
        """To whoever started us, once."""
        self._is_announced = True
        try:
            sys.stdout.write(
                f"standby controller={self._config.core.name} broker={self._config.broker} "
                f"pid={os.getpid()}\n"
            )
            sys.stdout.flush()
        except OSError:
            pass  # Nobody listens any more.
        sd_notify("READY=1\nSTATUS=standing by")
        logger.info("standing by")

    def _rule(self, why: str) -> None:
        logger.warning("taking over at_ms=%d: %s", now_ms(), why)
        self.takes_over = True
        self._end_role(0)

    def close(self) -> None:
        """Commit what is left and give everything back; after `run`."""
        self._connection.close()
        if self._replica is not None:
            self._replica.close(rules=self.takes_over)
        self._loop.close()
