"""What the core orders besides messages, carried out without the network's lock.

Values are decoded and futures resolved here: users' classes run. Who may hold the lock meanwhile
goes on submitting.
"""

import logging
import threading
from collections.abc import Collection

from forage.calls import TaskCalls, refusal
from forage.core.commands import (
    AnswerReceived,
    Command,
    ControllerMissing,
    NoteAttempts,
    NoteProgress,
    NoteStarted,
    ProtocolRefused,
    RefuseTask,
    ReplicasEnded,
    ResolveCalls,
    Welcomed,
)
from forage.errors import ForageError, NotConnected, VersionMismatch
from forage.future import LOCK
from forage.shell import callbacks
from forage.shell.line import Line
from forage.shell.queries import Queries
from forage_wire.io import Note

__all__ = ["Delivery"]

logger = logging.getLogger(__name__)

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class Delivery:
    """Of one client, in its network thread.

    Args:
        tasks: Those with open calls, by id; under `lock`, but for looking one up.
        queries: Get their answers.
        line: Gets to know what the controller says of this connection.
        lock: The network's.
    """

    __slots__ = ("_line", "_lock", "_queries", "_tasks")

    def __init__(
        self, tasks: dict[str, TaskCalls], queries: Queries, line: Line, lock: threading.Lock
    ) -> None:
        self._tasks = tasks
        self._queries = queries
        self._line = line
        self._lock = lock

    def carry_out(self, commands: list[Command]) -> Collection[TaskCalls]:
        """Do as ordered; the answer is the tasks of which calls ended."""
        touched: dict[str, TaskCalls] = {}
        for command in commands:
            if type(command) is ResolveCalls:
                calls = self._tasks.get(command.task)
                if calls is not None:
                    touched[command.task] = calls
                    finished = calls.resolve(command)
                    if finished:
                        callbacks.callback_thread.run(finished)
            else:
                self._carry_out(command, touched)
        return touched.values()

    def _carry_out(self, command: Command, touched: dict[str, TaskCalls]) -> None:
        match command:
            case ReplicasEnded():
                calls = self._tasks.get(command.task)
                if calls is not None and calls.votes is not None:
                    calls.votes.take(calls.network, command)
            case NoteStarted():
                with LOCK:
                    for task, index in command.rows:
                        calls = self._tasks.get(task)
                        if calls is not None:
                            calls.note_started(index, command.device)
            case NoteProgress():
                calls = self._tasks.get(command.said.task)
                if calls is not None:
                    calls.note_progress(command.said)
            case NoteAttempts():
                calls = self._tasks.get(command.task)
                if calls is not None:
                    calls.note_attempts(command)
            case RefuseTask():
                calls = self._tasks.get(command.task)
                if calls is not None:
                    touched[command.task] = calls
                    callbacks.callback_thread.run(calls.fail(command.ranges, refusal(command)))
            case AnswerReceived():
                self._queries.answered(command)
            case Welcomed():
                self._line.was_welcomed = True
            case ControllerMissing():
                self._fail(NotConnected(f"{command.text} (The broker is {self._line.address}.)"))
                logger.warning("%s", command.text)
            case ProtocolRefused():
                self._fail(VersionMismatch(command.text))
                logger.error("%s", command.text)
            case Note():
                logger.log(_LEVELS.get(command.level, 20), "%s", command.text)

    def _fail(self, error: ForageError) -> None:
        with self._lock:
            self._line.fail(error)
