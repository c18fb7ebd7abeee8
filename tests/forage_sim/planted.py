"""The list of planted bugs: each one line (or two) of a core, and which oracle is to find it."""

from dataclasses import dataclass

__all__ = ["MUTANTS", "Mutant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One bug."""

    name: str
    file: str
    old: str
    """Occurs exactly once in the file."""
    new: str
    oracles: tuple[str, ...]
    """Any of these may be the first to see it; `core` is a core's own assertion or exception."""
    world: str = ""
    """`pair`: the one of two controllers; else the ordinary one."""
    quick: bool = False
    """Whether a few hundred seeds find it, so that the slow tests try it each time."""


CONTROLLER = "controller/forage_controller/core/"
AGENT = "agent/forage_agent/core/"
CLIENT = "sdk/forage/core/"
WIRE = "schemas/forage_wire/"

PAIR_MUTANTS = (
    Mutant(
        name="a device obeys a controller that was fenced",
        file=AGENT + "controllers.py",
        old="if message.epoch < max(1, self.epoch):",
        new="if message.epoch < 1:",
        oracles=("OneObeyed",),
        world="pair",
    ),
    Mutant(
        name="a device forgets what may run once before the standby has it",
        file=CONTROLLER + "settlement.py",
        old="everywhere=page is not None and page.runs_once",
        new="everywhere=False",
        oracles=("AtMostOnce",),
        world="pair",
    ),
    Mutant(
        name="what a standby that is gone lacks goes on at once",
        file=CONTROLLER + "replicas.py",
        old="            self._hold(one, one.position, why)",
        new="            pass",
        oracles=("AtMostOnce", "OneRightOutcome"),
        world="pair",
    ),
    Mutant(
        name="a take-over goes on under the epoch of before",
        file=CONTROLLER + "controller.py",
        old="self.epoch = max(self.epoch, self._epoch_seen) + 1",
        new="self.epoch = max(1, self.epoch, self._epoch_seen)",
        oracles=("OneObeyed", "EveryCallEnds", "NothingLeft", "core"),
        world="pair",
        quick=True,
    ),
    Mutant(
        name="groups that were committed while the copy was made are left out",
        file=CONTROLLER + "replicas.py",
        old="while one.groups and one.groups[0].position <= event.position:",
        new="while one.groups:",
        oracles=("CopyIsTrue",),
        world="pair",
    ),
    Mutant(
        name="a standby says that it has what it has not committed",
        file=CONTROLLER + "following.py",
        old="while self._saving and self._saving[0][0] <= number:",
        new="while self._saving:",
        oracles=("CopyIsTrue",),
        world="pair",
        quick=True,
    ),
    Mutant(
        name="groups are sent before they are committed",
        file=CONTROLLER + "replicas.py",
        old="while self._uncommitted and self._uncommitted[0].position <= number:",
        new="while self._uncommitted:",
        oracles=("CopyIsTrue",),
        world="pair",
        quick=True,
    ),
)

CONTROLLER_MUTANTS = (
    Mutant(
        name="a deadline comes too soon",
        file=CONTROLLER + "running.py",
        old="page.due_ms = now_ms + page.header.options.deadline_ms",
        new="page.due_ms = now_ms + page.header.options.deadline_ms // 2",
        oracles=("OneRightOutcome",),
        quick=True,
    ),
    Mutant(
        name="a deadline counts anew after a restart",
        file=CONTROLLER + "recover.py",
        old="due_ms=None if saved.due_ms is None else running.now_of(saved.due_ms)",
        new="due_ms=None",
        oracles=("DeadlinesHold",),
        quick=True,
    ),
    Mutant(
        name="the time in which nobody ruled is not counted",
        file=CONTROLLER + "running.py",
        old="if machine.boot and machine.boot == saved.boot:",
        new="if False:",
        oracles=("DeadlinesHold",),
        quick=True,
    ),
    Mutant(
        name="another machine's clock is taken for the one of before",
        file=CONTROLLER + "running.py",
        old="if machine.boot and machine.boot == saved.boot:",
        new="if True:",
        oracles=("OneRightOutcome",),
        world="pair",
    ),
    Mutant(
        name="a device may have two replicas of a call",
        file=CONTROLLER + "dispatch.py",
        old="if device.name in barred:",
        new="if False:",
        oracles=("DevicesVoteOnce",),
        quick=True,
    ),
    Mutant(
        name="a device that has answered for a call is asked again",
        file=CONTROLLER + "siblings.py",
        old="answered = task.answered.get(run)",
        new="answered = None",
        oracles=("DevicesVoteOnce",),
        quick=True,
    ),
    Mutant(
        name="who has answered for a call is forgotten in a restart",
        file=CONTROLLER + "recover.py",
        old="for device, ranges in row.answered:",
        new="for device, ranges in ():",
        oracles=("DevicesVoteOnce",),
        quick=True,
    ),
    Mutant(
        name="an exclusive call gets a second attempt beside the first",
        file=CONTROLLER + "stragglers.py",
        old="        and not options.exclusive\n",
        new="",
        oracles=("ExclusiveAlone",),
    ),
    Mutant(
        name="a call that may run once only gets a second attempt",
        file=CONTROLLER + "stragglers.py",
        old="        and not options.at_most_once\n",
        new="",
        oracles=("AtMostOnce",),
    ),
    Mutant(
        name="an exclusive call goes to another device while the first may still run it",
        file=CONTROLLER + "losses.py",
        old="free_ms = Leases.over_ms(opened)",
        new="free_ms = 0",
        oracles=("ExclusiveAlone",),
    ),
    Mutant(
        name="leases that were given before a restart are forgotten",
        file=CONTROLLER + "leases.py",
        old="                opened.leased_ms = now_ms\n\n    def on_renew",
        new="                opened.leased_ms = None\n\n    def on_renew",
        oracles=("ExclusiveAlone",),
    ),
    Mutant(
        name="an attempt goes on from the state of another call of its task",
        file=CONTROLLER + "dispatch.py",
        old="kept = task.checkpoints.get(pending.low)",
        new="kept = next(iter(task.checkpoints.values()), None)",
        oracles=("OwnCheckpoint",),
        quick=True,
    ),
    Mutant(
        name="a replica goes on from what another device has made",
        file=CONTROLLER + "dispatch.py",
        old="if kept is not None and task.replicas > 1 and kept.device != device.name:",
        new="if False:",
        oracles=("OwnCheckpoint",),
    ),
    Mutant(
        name="a state is kept for the first call of its assignment",
        file=CONTROLLER + "checkpoints.py",
        old="        index = message.index\n",
        new="        index = message.index if opened is None else opened.low\n",
        oracles=("OwnCheckpoint",),
    ),
    Mutant(
        name="an older checkpoint replaces a newer one",
        file=CONTROLLER + "checkpoints.py",
        old="if former is not None and former.number >= message.number:",
        new="if former is not None and former.number > message.number + 9:",
        oracles=("OwnCheckpoint",),
        quick=True,
    ),
    Mutant(
        name="a call that its device was lost with begins anew",
        file=CONTROLLER + "dispatch.py",
        old="""        checkpoint: Checkpoint | None = None
        if pending.task.checkpoints:""",
        new="""        checkpoint: Checkpoint | None = None
        if pending.task.checkpoints and not pending.announce:""",
        oracles=("OwnCheckpoint",),
        quick=True,
    ),
    Mutant(
        name="a restart forgets the checkpoints",
        file=CONTROLLER + "recover.py",
        old="if kept_of is not None and checkpoint.index not in kept_of.done:",
        new="if False:",
        oracles=("OwnCheckpoint",),
    ),
    Mutant(
        name="calls with checkpoints go out among others",
        file=CONTROLLER + "backlog.py",
        old="    if task.checkpoints:\n",
        new="    if False:\n",
        oracles=("OwnCheckpoint",),
    ),
    Mutant(
        name="a checkpoint stays on the account when its call has ended",
        file=CONTROLLER + "checkpoints.py",
        old="self.bytes -= _size(task.checkpoints.pop(index).data)",
        new="task.checkpoints.pop(index)",
        oracles=("OwnCheckpoint",),
        quick=True,
    ),
    Mutant(
        name="the will of an earlier session is believed",
        file=CONTROLLER + "fleet.py",
        old='if presence.session == device.session and device.verdict != "dead":',
        new='if device.verdict != "dead":',
        oracles=("FairVerdicts",),
        quick=True,
    ),
    Mutant(
        name="a message of an earlier session is taken for the present one's",
        file=CONTROLLER + "fleet.py",
        old="if not device.session or is_newer(session, device.session):",
        new="if not device.session or start_of(session) == start_of(device.session):",
        oracles=("StaleSessions",),
        quick=True,
    ),
    Mutant(
        name="a connection that was over long ago takes a device's name",
        file=CONTROLLER + "fleet.py",
        old="if past is not None and is_newer(past, session):",
        new="if False:",
        oracles=("StaleSessions",),
    ),
    Mutant(
        name="a retained word is a sign of life",
        file=CONTROLLER + "fleet.py",
        old="""            device.state = presence.state
            self._on_changed(device)
        if not retain:
            self._heard(device, now_ms)""",
        new="""            device.state = presence.state
            self._on_changed(device)
        if True:
            self._heard(device, now_ms)""",
        oracles=("FairVerdicts",),
        quick=True,
    ),
    Mutant(
        name="silence counts while the controller was not there to hear",
        file=CONTROLLER + "fleet.py",
        old="since_ms = max(device.heard_ms, self._listening_since_ms, device.busy_since_ms)",
        new="since_ms = max(device.heard_ms, device.busy_since_ms)",
        oracles=("FairVerdicts",),
        quick=True,
    ),
    Mutant(
        name="a device is dead after half of its detection time",
        file=CONTROLLER + "fleet.py",
        old="            return self.detect_ms(device)\n        return self._config",
        new="            return self.detect_ms(device) // 2\n        return self._config",
        oracles=("FairVerdicts",),
        quick=True,
    ),
    Mutant(
        name="the epoch is used before it is saved",
        file=CONTROLLER + "controller.py",
        old="self.effects.after_commit(self._epoch_committed, urgent=True)",
        new="self._epoch_committed(0)",
        oracles=("CommitFirst",),
        quick=True,
    ),
    Mutant(
        name="a page is acknowledged before it is saved",
        file=CONTROLLER + "ledger.py",
        old="""        self._effects.after_commit(
            lambda at_ms: self._page_committed(task, page, waits, at_ms), urgent=waits
        )
""",
        new="        self._page_committed(task, page, waits, now_ms)\n",
        oracles=("CommitFirst", "OneRightOutcome"),
        quick=True,
    ),
    Mutant(
        name="an outcome is acknowledged before it is saved",
        file=CONTROLLER + "settlement.py",
        old="self._effects.after_commit(acknowledge, urgent=is_mcu, everywhere=everywhere)",
        new="acknowledge(0)",
        oracles=("CommitFirst",),
        quick=True,
    ),
    Mutant(
        name="an outcome made by the controller is told before it is saved",
        file=CONTROLLER + "settlement.py",
        old="""        self._effects.after_commit(
            lambda at_ms: self._committed(task, made.ranges, made, made, at_ms), urgent=True
        )""",
        new="        self._committed(task, made.ranges, made, made, now_ms)",
        oracles=("CommitFirst",),
        quick=True,
    ),
    Mutant(
        name="an assignment of an at_most_once task leaves before it is saved",
        file=CONTROLLER + "assignments.py",
        old="if pending.page.runs_once:",
        new='if pending.page.header.settle == "controller":',
        oracles=("CommitFirst",),
        quick=True,
    ),
    Mutant(
        name="an assignment of a task that the controller settles leaves before it is saved",
        file=CONTROLLER + "assignments.py",
        old="if pending.page.runs_once:",
        new="if pending.page.header.options.at_most_once:",
        oracles=("CommitFirst",),
        quick=True,
    ),
    Mutant(
        name="a release is told before it is saved",
        file=CONTROLLER + "ledger.py",
        old="        self._effects.after_commit(tell)",
        new="        tell(0)",
        oracles=("CommitFirst",),
        quick=True,
    ),
    Mutant(
        name="a release is not saved",
        file=CONTROLLER + "ledger.py",
        old="        self._effects.save(SaveReleased(task=task.id))",
        new="        pass",
        oracles=("CommitFirst", "NothingLeft"),
        quick=True,
    ),
    Mutant(
        name="a task is released when all is settled, and not yet collected",
        file=CONTROLLER + "state.py",
        old="self.collected.covers(0, self.total)",
        new="self.done.covers(0, self.total)",
        oracles=("OneRightOutcome",),
        quick=True,
    ),
    Mutant(
        name="an outcome of a closed assignment settles a call that only open ones may",
        file=CONTROLLER + "settlement.py",
        old="                if opened is None:\n                    continue\n",
        new="                if opened is None:\n                    new.update(task.done.missing(low, high))\n                    continue\n",
        oracles=("ClosedNeverSettles",),
    ),
    Mutant(
        name="a counter is not moved",
        file=CONTROLLER + "settlement.py",
        old="        task.counters[index] = counters\n",
        new="",
        oracles=("OneRightOutcome", "EveryCallEnds", "AcknowledgedSettled"),
    ),
    Mutant(
        name="an at_most_once call of a lost device is run again",
        file=CONTROLLER + "losses.py",
        old="if opened.page.header.options.at_most_once and opened.sent:",
        new="if False:",
        oracles=("AtMostOnce",),
        quick=True,
    ),
    Mutant(
        name="the work of a lost device is not done by another",
        file=CONTROLLER + "losses.py",
        old="for pending in reversed(waiting):",
        new="for pending in reversed(waiting[1:]):",
        oracles=("EveryCallEnds", "AcknowledgedSettled"),
        quick=True,
    ),
    Mutant(
        name="after a restart an assignment of before may be given to another device",
        file=CONTROLLER + "recover.py",
        old="            sent=True,\n",
        new="",
        oracles=("AtMostOnce",),
    ),
    Mutant(
        name="what an inventory lacks is taken back though it may be on its way",
        file=CONTROLLER + "reconcile.py",
        old="return number is not None and number <= received",
        new="return True",
        oracles=("AtMostOnce", "ClosedNeverSettles", "EveryCallEnds", "NothingLeft"),
        quick=True,
    ),
    Mutant(
        name="a client is never told what is settled",
        file=CONTROLLER + "clients.py",
        old="client.link.send(Settled(rows=part))\n\n    def next",
        new="pass\n\n    def next",
        oracles=("EveryCallEnds", "AcknowledgedSettled"),
        quick=True,
    ),
    Mutant(
        name="a client that is said to be gone is not asked",
        file=CONTROLLER + "clients.py",
        old="        self._knock(client)\n        self._reconciler",
        new="        client.gone_ms = None\n        self._reconciler",
        oracles=("EveryCallEnds", "AcknowledgedSettled"),
    ),
    Mutant(
        name="what a repeated page says is collected is not noted",
        file=CONTROLLER + "ledger.py",
        old="            self.collect(task, message.collected, now_ms, kills=True)\n",
        new="            pass\n",
        oracles=("CommitFirst", "EveryCallEnds", "AcknowledgedSettled", "NothingLeft"),
        quick=True,
    ),
    Mutant(
        name="outcomes of clients that are gone are not kept",
        file=CONTROLLER + "settlement.py",
        old="        if new and not self._has_room(device):\n            return True\n",
        new="        if new and (task.client.gone_ms is not None or not self._has_room(device)):\n            return True\n",
        oracles=("AcknowledgedSettled", "EveryCallEnds"),
        quick=True,
    ),
    Mutant(
        name="a device's links are not counted, so that messages of one are taken for another's",
        file=CONTROLLER + "fleet.py",
        old="        device.link_number += 1\n",
        new="",
        oracles=("EveryCallEnds", "NothingLeft", "AcknowledgedSettled", "AtMostOnce", "core"),
    ),
    Mutant(
        name="work of a client that is gone is not done",
        file=CONTROLLER + "clients.py",
        old="        self._knock(client)\n        self._reconciler",
        new="        [self._settlement._backlog.discard(p, p.first, p.end) for t in client.tasks.values() for p in t.pages.values()]\n        self._knock(client)\n        self._reconciler",
        oracles=("AcknowledgedSettled", "EveryCallEnds"),
    ),
    Mutant(
        name="code that a device lacks is not sent again",
        file=CONTROLLER + "intake.py",
        old="                self._codes.owe(device, code_hash, users.get(code_hash))",
        new="                pass",
        oracles=("EveryCallEnds", "AcknowledgedSettled"),
        quick=True,
    ),
)

AGENT_MUTANTS = (
    Mutant(
        name="an exclusive call begins before it has a lease",
        file=AGENT + "slices.py",
        old="has_lease=not header.options.exclusive",
        new="has_lease=True",
        oracles=("ExclusiveAlone",),
    ),
    Mutant(
        name="a lease counts from its answer",
        file=AGENT + "leases.py",
        old="until_ms = sent_ms + part.header.options.lease_ms",
        new="until_ms = now_ms + part.header.options.lease_ms",
        oracles=("ExclusiveAlone",),
    ),
    Mutant(
        name="a worker is not given the state that came with its call",
        file=AGENT + "slices.py",
        old="checkpoints=None if checkpoint is None else {assignment.low: checkpoint},",
        new="checkpoints=None,",
        oracles=("OwnCheckpoint",),
        quick=True,
    ),
    Mutant(
        name="a device does not notice that its controller has begun another link",
        file=AGENT + "controllers.py",
        old="            if number == self.link.number:\n",
        new="            if number >= self.link.number:\n",
        oracles=("EveryCallEnds", "NothingLeft", "AcknowledgedSettled"),
        quick=True,
    ),
    Mutant(
        name="a device obeys what was said to its earlier session",
        file=AGENT + "controllers.py",
        old="if not self.session or message.session != self.session or not message.controller:",
        new="if not self.session or not message.controller:",
        oracles=("StaleSessions", "StartedOnce"),
        quick=True,
    ),
    Mutant(
        name="a trim gives back calls that have begun",
        file=AGENT + "slices.py",
        old="real = min(self.high, max(wished, begun[-1][1] if begun else self.low))",
        new="real = min(self.high, max(wished, self.low))",
        oracles=("StartedOnce", "AtMostOnce", "ClosedNeverSettles", "core"),
        quick=True,
    ),
    Mutant(
        name="an outcome is forgotten before it is acknowledged",
        file=AGENT + "outbox.py",
        old="            for piece in part.pieces.values():\n                self._wait(part, piece, now_ms)\n\n    def say_again",
        new="            for piece in ():\n                self._wait(part, piece, now_ms)\n\n    def say_again",
        oracles=("EveryCallEnds", "AcknowledgedSettled", "NothingLeft"),
        quick=True,
    ),
    Mutant(
        name="an inventory leaves out what runs",
        file=AGENT + "agent.py",
        old="rows=self._holdings.rows()",
        new="rows=self._holdings.rows()[1:]",
        oracles=(
            "ExclusiveAlone",
            "AtMostOnce",
            "StartedOnce",
            "ClosedNeverSettles",
            "EveryCallEnds",
            "AcknowledgedSettled",
        ),
        quick=True,
    ),
    Mutant(
        name="one try less than the task allows",
        file=AGENT + "slices.py",
        old="self.tries + 1 > self.header.options.retries",
        new="self.tries + 1 >= self.header.options.retries",
        oracles=("OneRightOutcome",),
        quick=True,
    ),
    Mutant(
        name="one death less than is allowed",
        file=AGENT + "slices.py",
        old="self.deaths + 1 >= DEATHS_MAX",
        new="self.deaths + 2 >= DEATHS_MAX",
        oracles=("OneRightOutcome",),
        quick=True,
    ),
    Mutant(
        name="an attempt that was called off ends its call",
        file=AGENT + "slices.py",
        old='if reason in ("cancelled", "lost"):',
        new='if reason in ("called off", "lost"):',
        oracles=("OneRightOutcome",),
        quick=True,
    ),
    Mutant(
        name="calls before a worker that died are not given to the next one",
        file=AGENT + "pool.py",
        old="        self._give_back(worker.given)\n        return notes",
        new="        return notes",
        oracles=("EveryCallEnds", "AcknowledgedSettled", "NothingLeft"),
        quick=True,
    ),
)

CLIENT_MUTANTS = (
    Mutant(
        name="an outcome that comes again is given to the caller again",
        file=CLIENT + "receiving.py",
        old="if retried or any(task.resolved.common(*each) for each in ranges):",
        new="if retried:",
        oracles=("OneRightOutcome",),
        quick=True,
    ),
    Mutant(
        name="an attempt that is to be followed by another ends its call",
        file=CLIENT + "receiving.py",
        old="            if not final and index not in task.resolved\n        ]\n        if retried:",
        new="            if False\n        ]\n        if retried:",
        oracles=("OneRightOutcome",),
        quick=True,
    ),
    Mutant(
        name="a page is forgotten at its first outcome",
        file=CLIENT + "receiving.py",
        old="            self._sending.opened(page, now_ms)",
        new="            self._sending.opened(page, now_ms)\n            task.pages.pop(page.first, None)",
        oracles=("EveryCallEnds", "AcknowledgedSettled", "OneRightOutcome", "core"),
        quick=True,
    ),
    Mutant(
        name="pages that are not acknowledged are not sent on a new link",
        file=CLIENT + "sending.py",
        old="                page.is_open = False\n                self._waiting.append(page)",
        new="                page.is_open = False",
        oracles=("EveryCallEnds", "AcknowledgedSettled"),
        quick=True,
    ),
    Mutant(
        name="a question is not asked again on a new link",
        file=CLIENT + "client.py",
        old="        for query in self._queries.values():\n            self._sending.send(query)",
        new="        pass",
        oracles=("EveryCallEnds", "AcknowledgedSettled"),
        quick=True,
    ),
    Mutant(
        name="a client does not attach again on a new link",
        file=CLIENT + "client.py",
        old="                self._sending.attach(name)",
        new="                pass",
        oracles=("EveryCallEnds", "AcknowledgedSettled"),
        quick=True,
    ),
    Mutant(
        name="what a client is offered, it does not fetch",
        file=CLIENT + "receiving.py",
        old="            self._sending.send(Fetch(rows=tuple(lacking)))",
        new="            pass",
        oracles=("EveryCallEnds", "AcknowledgedSettled"),
        quick=True,
    ),
    Mutant(
        name="a client stays with a controller that is there no more",
        file=CLIENT + "client.py",
        old="            self._start_link(current, now_ms, self._controllers.epoch)",
        new="            pass",
        oracles=("EveryCallEnds", "AcknowledgedSettled", "NothingLeft"),
        quick=True,
    ),
)

WIRE_MUTANTS = (
    Mutant(
        name="a repeated message is taken for a new one",
        file=WIRE + "link.py",
        old="        if message.n <= self._received:\n            return []",
        new="        if message.n < self._received:\n            return []",
        oracles=("EveryCallEnds", "NothingLeft", "StartedOnce", "AcknowledgedSettled", "core"),
    ),
    Mutant(
        name="a gap in the numbers is not noticed",
        file=WIRE + "link.py",
        old="        if message.n > self._received + 1:\n",
        new="        if message.n > self._received + 2:\n",
        oracles=("EveryCallEnds", "NothingLeft", "StartedOnce", "AcknowledgedSettled", "core"),
        quick=True,
    ),
    Mutant(
        name="a window has no end",
        file=WIRE + "link.py",
        old="        while self._queue and len(self._unseen) < self.window:",
        new="        while self._queue:",
        oracles=("BoundedQueues",),
        quick=True,
    ),
    Mutant(
        name="a message that is not seen is not repeated",
        file=WIRE + "link.py",
        old="        out.append(Outgoing(topic=topic, payload=payload))\n        self._repeat_after_ms",
        new="        self._repeat_after_ms",
        oracles=("EveryCallEnds", "NothingLeft", "AcknowledgedSettled"),
        quick=True,
    ),
    Mutant(
        name="that the other end has lost a link is not noticed",
        file=WIRE + "link.py",
        old="            self.is_forgotten = True",
        new="            pass",
        oracles=("EveryCallEnds", "AcknowledgedSettled", "NothingLeft", "DevicesVoteOnce"),
    ),
    Mutant(
        name="what was seen is taken for what was sent last",
        file=WIRE + "link.py",
        old="            if oldest > message.seen:\n                break",
        new="            if oldest > message.seen + 1:\n                break",
        oracles=("EveryCallEnds", "NothingLeft", "AcknowledgedSettled"),
        quick=True,
    ),
)

MUTANTS = PAIR_MUTANTS + CONTROLLER_MUTANTS + AGENT_MUTANTS + CLIENT_MUTANTS + WIRE_MUTANTS
