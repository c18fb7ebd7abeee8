"""Questions to the controller, and their answers as records."""

import itertools
import json
import threading
from typing import TYPE_CHECKING, Any

from forage.core.commands import AnswerReceived
from forage.core.events import QueryAsked, QueryDropped
from forage.errors import NotConnected, Refused
from forage.info import Attempt, Explanation
from forage_wire.texts import check_text

if TYPE_CHECKING:
    from forage.shell.network import Network

__all__ = ["Queries"]

ANSWER_S = 10.0
"""How long a controller may take to answer."""


class _Asked:
    """One question that somebody waits for."""

    __slots__ = ("answer", "event")

    def __init__(self) -> None:
        self.event = threading.Event()
        self.answer: AnswerReceived | None = None


class Queries:
    """What a client asks its controller. Any thread may, but not a class's own unpickling code."""

    def __init__(self, network: "Network") -> None:
        self._network = network
        self._asked: dict[int, _Asked] = {}
        self._next_id = itertools.count(1)

    def answered(self, command: AnswerReceived) -> None:
        """An answer arrived."""
        asked = self._asked.pop(command.id, None)
        if asked is not None:
            asked.answer = command
            asked.event.set()

    def ask(self, what: str, name: str = "", **arguments: str) -> Any:
        """The controller's answer to a question.

        Raises:
            NotConnected: None came in time.
            Refused: It says no, in words.
        """
        self._network.check_may_wait()
        check_text(name, f"The name {name!r}")
        query_id = next(self._next_id)
        asked = self._asked[query_id] = _Asked()
        try:
            self._network.tell(
                QueryAsked(id=query_id, what=what, name=name, arguments=tuple(arguments.items()))
            )
            if not asked.event.wait(ANSWER_S):
                self._network.tell(QueryDropped(id=query_id))
                raise NotConnected(
                    f"The controller behind {self._network.address} did not answer within "
                    f"{ANSWER_S:g} s; see whether it runs, with `forage doctor`."
                )
        finally:
            self._asked.pop(query_id, None)
        answer = asked.answer
        assert answer is not None
        body = json.loads(answer.body) if answer.body else None
        if not answer.ok:
            raise Refused(_sentence(body))
        return body

    def history(self, name: str) -> list[Attempt]:
        """The attempts of a task or call, oldest first."""
        body = self.ask("history", name)
        return [Attempt.from_row(row) for row in body.get("attempts") or ()]

    def explain(self, name: str) -> Explanation:
        """Where a task or call is, and why."""
        return Explanation.from_row(name, self.ask("explain", name))

    def logs(self, name: str) -> list[str]:
        """The last lines that a task or call wrote."""
        return list(self.ask("logs", name).get("lines") or ())


def _sentence(body: Any) -> str:
    """What a refusal says."""
    if isinstance(body, dict):
        body = body.get("error") or body.get("text") or body.get("reason") or body
    return str(body) if body else "The controller refuses without a reason."
