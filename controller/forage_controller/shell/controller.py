"""The controller that rules, as a process: its core, its store, and the word that it is ready."""

import logging
import os
import sys
from dataclasses import replace
from random import Random
from typing import Any

from forage_controller.config import ControllerConfig
from forage_controller.core.controller import ControllerCore
from forage_controller.shell.program import Identity, Program, machine_time
from forage_controller.shell.store import Store
from forage_wire.shell.notify import sd_notify

__all__ = ["Controller"]

logger = logging.getLogger(__name__)


class Controller(Program):
    """`run` until `stop` (from a signal handler or another thread) or the core's own end."""

    def __init__(
        self,
        config: ControllerConfig,
        identity: Identity,
        *,
        epoch: int = 0,
        say_ready: bool = True,
        took_over_ms: int | None = None,
    ) -> None:
        """Open the store; nothing is opened towards the broker yet.

        Args:
            config: Everything that can be set.
            identity: This process start.
            epoch: The highest that others are known to have used.
            say_ready: Whether nobody has been told yet that this process is ready.
            took_over_ms: When a take-over was decided with a copy that lacked nothing then; None:
                this is no take-over, or one with a copy that may be old.

        Raises:
            StoreError: The state directory cannot be used.
        """
        self._store = Store(config.state_dir, self.put, start=identity.start)
        try:
            recovered = self._store.recover()
            random = Random(f"{identity.start}-{identity.client_id_part}")
            self._ruling = ControllerCore(
                config.core,
                replace(recovered, epoch=max(recovered.epoch, epoch)),
                identity.start,
                seed=random.getrandbits(32),
                machine=machine_time(),
                took_over_ms=took_over_ms,
            )
            subscriptions = self._ruling.topics.controller_subscriptions()
            super().__init__(config, identity, self._ruling, subscriptions, random)
        except BaseException:
            self._store.close()
            raise
        self._is_announced = not say_ready

    def begin(self) -> None:
        """Begin to commit and to answer."""
        self._store.start()

    def carry_out(self, command: Any) -> None:
        """All that a core orders beside messages is the store's."""
        self._store.execute(command)

    def carried_out(self) -> None:
        """Hand over what is to be stored; say once that we rule."""
        self._store.flush()
        if not self._is_announced and self._ruling.active:
            self._announce()

    def close(self) -> None:
        """Commit what is left and give everything back; after `run`."""
        self._connection.close()
        self._store.close()
        self._loop.close()

    def _announce(self) -> None:
        """Ready: to whoever started us, once."""
        self._is_announced = True
        try:
            sys.stdout.write(
                f"ready controller={self._config.core.name} broker={self._config.broker} "
                f"epoch={self._ruling.epoch} pid={os.getpid()}\n"
            )
            sys.stdout.flush()
        except OSError:
            pass  # Nobody listens any more.
        sd_notify(f"READY=1\nSTATUS=active with epoch {self._ruling.epoch}")
        logger.info("active epoch=%d", self._ruling.epoch)
