"""The controller's core: one `handle` for all that happens, wired from its parts.

    starting ──(nobody else is active, epoch committed)──► active ──► exit 2 where another rules

It listens before it rules: another live controller ends it in words. Its epoch is one above
any it has stored, heard or been refused with, and is committed before the first use.
"""

import random
from functools import partial
from typing import assert_never

from forage_controller.core.archive import Archive
from forage_controller.core.assignments import Assignments
from forage_controller.core.backlog import Backlog
from forage_controller.core.clients import Clients
from forage_controller.core.codes import CodeShelf
from forage_controller.core.commands import Command, Event
from forage_controller.core.config import CoreConfig
from forage_controller.core.deadlines import Deadlines
from forage_controller.core.dispatch import Dispatcher
from forage_controller.core.early import Early
from forage_controller.core.effects import Effects
from forage_controller.core.feed import SnapshotFailed, SnapshotOpened, SnapshotRead
from forage_controller.core.fleet import Fleet
from forage_controller.core.intake import Intake
from forage_controller.core.later import Later
from forage_controller.core.leases import Leases
from forage_controller.core.ledger import Ledger
from forage_controller.core.links import Links
from forage_controller.core.losses import Losses
from forage_controller.core.monitor import Monitor
from forage_controller.core.operations import (
    CodeLoaded,
    MachineTime,
    OutcomesLoaded,
    PageLoaded,
    RecoveredState,
    SaveCommitted,
    SaveEpoch,
    SaveFailed,
    StoreFull,
    StoreHasRoom,
)
from forage_controller.core.our_word import our_presence, sender_of
from forage_controller.core.pages import PageCache
from forage_controller.core.queries import Queries
from forage_controller.core.reconcile import Reconciler
from forage_controller.core.recover import recover
from forage_controller.core.replicas import Replicas
from forage_controller.core.running import RunningTime
from forage_controller.core.sessions import start_of
from forage_controller.core.settlement import Settlement
from forage_controller.core.shown import Shown
from forage_controller.core.siblings import Siblings
from forage_controller.core.starvation import Starvation
from forage_controller.core.state import Device
from forage_controller.core.unfit import end_unfit
from forage_controller.core.unheard import Unheard
from forage_wire.codec import decode
from forage_wire.errors import DecodeError
from forage_wire.ignored import KEYS_IGNORED
from forage_wire.io import (
    BatchEnded,
    Connected,
    Disconnected,
    MessageReceived,
    Publish,
    PublishAcknowledged,
)
from forage_wire.limits import EPOCH_CREDIBLE_MAX
from forage_wire.messages import ControllerPresence
from forage_wire.topics import Topics

__all__ = ["ControllerCore"]

_EXPIRE_EVERY_MS = 60_000


class ControllerCore:
    """Devices, tasks and who gets what.

    Args:
        config: Name, root topic, detection time, limits.
        recovered: What the store held at start.
        start: This process start's random part of its sessions (16 hexadecimal digits).
        seed: For what is left to chance: how long retries wait.
        machine: Its clock at this start; None: unknown.

    The shell's duties:
        1. Connect with `will` as the MQTT will, subscribe to `Topics.controller_subscriptions`,
           then hand `Connected`.
        2. Commit `Save` commands in order and answer each commit with `SaveCommitted`; what must
           wait for it is held here and comes out of that event.
        3. Hand everything readable, then `BatchEnded`; hand `BatchEnded` too when
           `next_wakeup_ms` is reached.
    """

    def __init__(
        self,
        config: CoreConfig,
        recovered: RecoveredState,
        start: str,
        seed: int = 0,
        machine: MachineTime | None = None,
        took_over_ms: int | None = None,
    ) -> None:
        self._config = config
        self._took_over_ms = took_over_ms
        self._start = start
        self._random = random.Random(seed)
        self.topics = Topics(config.root)
        self._session = ""
        self._connected = False
        self._active = False
        self._now_ms = 0
        self.epoch = recovered.epoch
        self._epoch_shown = recovered.epoch
        """The last that is committed: nobody is to hear of one that may never have been."""
        self._epoch_seen = recovered.epoch
        self._epoch_pending = False
        self._decide_ms: int | None = None
        self._doubt = ""
        """Why another may rule in our place, until we have asked on the bus whether it does."""
        self._early = Early(config.limits)
        self._exiting = False
        self._wanted_ms: int | None = None
        self._expire_ms: int | None = None
        self._shown = Shown()

        self.effects = effects = Effects(synchronous=config.synchronous)
        self._links = Links(effects)
        self.replicas = Replicas(config, effects, self._links, self.topics)
        self.backlog = Backlog()
        self.assignments = Assignments(config, effects, self.backlog)
        self._pages = PageCache(effects, config.limits.page_cache_bytes)
        self._codes = CodeShelf(effects, config.limits)
        running = RunningTime(effects, recovered.time, machine or MachineTime())
        self.ledger = Ledger(
            config,
            effects,
            self.backlog,
            self.assignments,
            self._pages,
            self._codes,
            running,
        )
        self.later = Later(self.backlog, self.ledger.tasks)
        self.leases = Leases(self.assignments, effects)
        self.settlement = Settlement(
            config,
            effects,
            self.backlog,
            self.later,
            self.assignments,
            self.ledger,
            self._random,
        )
        self._deadlines = Deadlines(self.ledger, self.settlement, running)
        self._archive = Archive(effects, self.ledger)
        self.losses = Losses(
            self.backlog,
            self.later,
            self.leases,
            self.assignments,
            self.ledger,
            self.settlement,
            lambda header, names: self.fleet.spares(header, names),
        )
        self.fleet = Fleet(
            config,
            effects,
            self._links,
            self.topics,
            self.losses.lose_all,
            self._device_changed,
            self._device_forgotten,
        )
        self.reconciler = Reconciler(
            config,
            effects,
            self.backlog,
            self.assignments,
            self.ledger,
            self.settlement,
            self.losses,
        )
        self._queries = Queries(self.fleet, self.ledger, self.backlog, self.assignments)
        self.clients = Clients(
            config,
            effects,
            self._links,
            self.topics,
            self.ledger,
            self.settlement,
            self._archive,
            self._codes,
            self.reconciler,
            self._queries.on_query,
        )
        self.clients.devices_alive = lambda: self.fleet.alive
        self.siblings = Siblings(
            self.backlog, self.assignments, self.settlement, self.fleet.devices
        )
        self.dispatcher = Dispatcher(
            config,
            self.backlog,
            self.assignments,
            self._codes,
            self._pages,
            self.siblings,
            self.fleet.devices,
            self.fleet.silence.beat_ms,
            partial(end_unfit, self.settlement),
            self.ledger.checkpoints.drop,
        )
        self._starvation = Starvation(self.backlog, self.settlement, self.fleet, effects)
        self.monitor = Monitor(
            config,
            effects,
            self.topics,
            self.fleet,
            self.ledger,
            self.backlog,
            self.assignments,
            self.replicas,
        )
        self._intake = Intake(
            effects,
            self.topics,
            self.fleet,
            self.clients,
            self.ledger,
            self.settlement,
            self.assignments,
            self.reconciler,
            self.monitor,
            self._codes,
            self.leases,
            self._refused_epoch,
        )
        unheard = recover(
            recovered,
            self.clients,
            self.fleet,
            self.ledger,
            self.assignments,
            self.backlog,
            self._codes,
            running,
        )
        self._unheard = Unheard(unheard, self.fleet.devices, self.losses.lose_all)

    # -- the interface ----------------------------------------------------------------------

    @property
    def active(self) -> bool:
        """Whether an epoch of this start is committed: it has ruled, or rules once connected."""
        return self._active

    def will(self, session: str) -> Publish:
        """What the broker is to say of us when our connection breaks."""
        return self._presence("lost", session)

    def goodbye(self) -> list[Command]:
        """What to save and publish before an orderly end."""
        self._exiting = True
        self.clients.take_all_collected(self._now_ms)
        self._save()
        if self._connected:
            self.effects.command(self._presence("offline", self._session))
        return self.effects.take()

    def handle(self, event: Event, now_ms: int) -> list[Command]:
        """Advance by one event.

        Args:
            event: What happened.
            now_ms: Monotonic milliseconds; never less than in the call before.

        Returns:
            Commands to carry out in order.
        """
        self._now_ms = now_ms
        match event:
            case MessageReceived():
                self._on_message(event, now_ms)
                if KEYS_IGNORED:
                    self.effects.note_ignored(sender_of(self.topics.parse(event.topic)))
            case BatchEnded():
                self._on_batch_end(now_ms)
            case SaveCommitted():
                self.replicas.committed(event.number)
                self.effects.on_committed(event.number, now_ms)
            case PageLoaded():
                self._pages.loaded(self.ledger.tasks.get(event.task), event)
                self.backlog.unpark((event.task, event.first))
            case CodeLoaded():
                self._codes.loaded(event)
            case OutcomesLoaded():
                self._archive.on_loaded(event)
            case SnapshotRead():
                self.replicas.on_read(event)
            case SnapshotOpened():
                self.replicas.on_opened(event)
            case SnapshotFailed():
                self.replicas.on_failed(event, now_ms)
            case Connected():
                self._on_connected(event, now_ms)
            case Disconnected():
                self._on_disconnected(now_ms)
            case SaveFailed():
                self._exit(1, f"the store cannot be written: {event.reason}")
            case StoreFull():
                self.ledger.no_room = event.reason
                self.effects.note("error", f"no new tasks are taken: {event.reason}")
            case StoreHasRoom():
                self.ledger.no_room = ""
                self.effects.note("info", "the disk has room again: new tasks are taken")
            case PublishAcknowledged():
                pass
            case _:
                assert_never(event)
        return self.effects.take()

    def next_wakeup_ms(self) -> int | None:
        """When `BatchEnded` is due without any other event; None: never."""
        dues = [self._decide_ms, self.effects.next_wakeup_ms()]
        if self._rules:
            # Without a broker nothing is decided: no time is up before we hear again.
            dues += [
                self._links.next_wakeup_ms(),
                self.fleet.next_wakeup_ms(),
                self.monitor.next_wakeup_ms(),
                self.reconciler.next_wakeup_ms(),
                self.clients.next_wakeup_ms(),
                self.settlement.next_wakeup_ms(),
                self._starvation.next_wakeup_ms(),
                self.leases.next_wakeup_ms(),
                self.later.next_wakeup_ms(),
                self._deadlines.next_wakeup_ms(),
                self.dispatcher.next_wakeup_ms(),
                self.replicas.next_wakeup_ms(),
                self.siblings.looks[0][0] if self.siblings.looks else None,
                self._unheard.due_ms,
                self._expire_ms,
                self._shown.next_wakeup_ms(),
            ]
        known = [due for due in dues if due is not None]
        self._wanted_ms = min(known) if known else None
        return self._wanted_ms

    # -- our connection ---------------------------------------------------------------------

    @property
    def _rules(self) -> bool:
        """Whether we decide anything: not while another may rule in our place."""
        return self._active and self._connected and self._decide_ms is None

    def _presence(self, state: str, session: str) -> Publish:
        return our_presence(
            self._config,
            self.topics,
            state,
            session,
            epoch=self._epoch_shown,
            spread_ms=self.fleet.spread_ms(),
        )

    def _on_connected(self, event: Connected, now_ms: int) -> None:
        self._session = event.session
        self._connected = True
        if self._active:
            self._rule(now_ms)
            return
        late_ms = 0 if self._took_over_ms is None else now_ms - self._took_over_ms
        self._took_over_ms = None
        if late_ms > self._config.limits.change_ms:
            # It was we who were cut off, perhaps, and not the one that has fallen silent.
            words = "in which another controller may have done what this one knows nothing of"
            took = f"the broker was out of reach for {late_ms / 1000:g} s"
            self._exit(2, f"the take-over is called off: {took}, {words}")
            return
        self.effects.command(self._presence("starting", self._session))
        self._decide_ms = now_ms + self._config.limits.start_wait_ms

    def _on_disconnected(self, now_ms: int) -> None:
        self._connected = False
        self._decide_ms = None
        self._doubt = ""
        self._early.take()
        self.fleet.disconnected()
        self.clients.disconnected(now_ms)
        self.replicas.disconnected()

    def _ask(self, now_ms: int) -> None:
        """Ask whether another rules in our place: one that does says so to whoever starts.

        We may have been frozen, or away, while a standby took over: then our epoch is over, and to
        take the next one would be to take the fleet back with a store that has missed much.
        """
        self.effects.note("warning", f"{self._doubt}; asking whether another controller rules")
        self._doubt = ""
        self.effects.command(self._presence("starting", self._session))
        self._decide_ms = now_ms + self._config.limits.doubt_wait_ms

    def _decide(self) -> None:
        """Nobody else has spoken: take the next epoch, and rule once it is committed."""
        self._decide_ms = None
        if not self._epoch_pending and not self._exiting:
            self._next_epoch()

    def _next_epoch(self) -> None:
        self.epoch = max(self.epoch, self._epoch_seen) + 1
        self._epoch_pending = True
        self.effects.save(SaveEpoch(epoch=self.epoch))
        self.effects.after_commit(self._epoch_committed, urgent=True)

    def _epoch_committed(self, now_ms: int) -> None:
        self._epoch_pending = False
        # It may be that of a connection before: there is nothing left to decide on this one.
        self._decide_ms = None
        self.assignments.epoch = self._epoch_shown = self.epoch
        if self._active:
            self.effects.command(self._presence("active", self._session))
            self.clients.new_epoch(self.epoch)
            self.replicas.new_epoch(self.epoch)
            self.fleet.new_epoch(self.epoch, now_ms)
            return
        self._active = True
        if self._connected and not self._exiting:
            self._rule(now_ms)

    def _rule(self, now_ms: int) -> None:
        self.effects.command(self._presence("active", self._session))
        self._shown.rules_from(now_ms)
        self.clients.connected(self._session, self.epoch, now_ms)
        self.fleet.connected(self._session, self.epoch, now_ms)
        self.replicas.connected(self._session, self.epoch)
        self.reconciler.listen_from(now_ms)
        self._starvation.listen_from(now_ms)
        self.leases.listen_from(now_ms)
        self.siblings.listen_from(now_ms)
        self.monitor.connected()
        suspicion_ms = self._config.limits.first_suspicion_ms
        self._unheard.wait_until(now_ms + self.fleet.spread_ms() + suspicion_ms)
        for message in self._early.take():
            self._on_message(message, now_ms)

    def _see_epoch(self, epoch: int) -> None:
        """Somebody has this one: ours is to be above it, where it can be true."""
        if epoch <= EPOCH_CREDIBLE_MAX:
            self._epoch_seen = max(self._epoch_seen, epoch)

    def _refused_epoch(self, device: Device, bound: int, holder: str) -> None:
        """A device obeys another epoch: above ours, or ours from another start."""
        self._see_epoch(bound)
        if bound < self.epoch:
            # It refused what we sent under an earlier epoch of ours.
            return
        self.fleet.refused(device)
        if not self._epoch_pending:
            self._doubt = f"epoch {self.epoch} is refused: {holder} holds {bound}"

    def _on_controller(
        self, name: str, presence: ControllerPresence, retain: bool, now_ms: int
    ) -> None:
        self._see_epoch(presence.epoch)
        if start_of(presence.session) == self._start:
            # The broker found out only now that an earlier connection of ours was broken.
            if presence.state in ("lost", "offline") and not self._exiting:
                self._shown.again()
            return
        if self._exiting:
            return
        other = f"controller {name} (session {presence.session})"
        self._shown.heard(name, presence.state)
        if retain:
            if self._active and presence.state == "active" and presence.epoch > self.epoch:
                self._doubt = f"{other} was active with epoch {presence.epoch} above {self.epoch}"
            return
        if presence.state in ("lost", "offline"):
            self.replicas.gone(name, presence.session)
        elif presence.state == "starting":
            self.replicas.starts(name, now_ms)
        if presence.state == "active":
            if not self._active:
                self._give_way(
                    name, f"{other} is active on this broker: stop it first, or use another --root"
                )
            elif (presence.epoch, presence.session) > (self.epoch, self._session):
                self._give_way(
                    name,
                    f"fenced: {other} rules with epoch {presence.epoch} above ours, {self.epoch}; "
                    "devices refuse whatever this one would assign",
                )
            else:
                self.effects.command(self._presence("active", self._session))
        elif self._active and (name == self._config.name or presence.state == "starting"):
            # Another start overwrote our word under our name, or asks whether anybody rules.
            self.effects.command(self._presence("active", self._session))

    def _give_way(self, name: str, reason: str) -> None:
        """Another controller rules: leave its word standing, and none of ours beside it."""
        if self._connected and not self._exiting and name != self._config.name:
            self.effects.command(self._presence("offline", self._session))
        self._exit(2, reason)

    def _exit(self, code: int, reason: str) -> None:
        if not self._exiting:
            self._exiting = True
            self.effects.exit(code, reason)

    # -- messages ---------------------------------------------------------------------------

    def _on_message(self, event: MessageReceived, now_ms: int) -> None:
        parsed = self.topics.parse(event.topic)
        if parsed is None:
            self.effects.drop("unknown", f"topic {event.topic[:80]!r}")
            return
        if parsed.branch == "controller-presence":
            presence = self._intake.controller_presence(parsed, event.payload)
            if presence is not None:
                self._on_controller(parsed.controller, presence, event.retain, now_ms)
            return
        if not self._active or not self._connected:
            self._early.keep(event)
            return
        if parsed.branch == "replica":
            self._on_replica(parsed.controller, event.payload, now_ms)
            return
        self._intake.on_message(parsed, event, now_ms)

    def _on_replica(self, name: str, payload: bytes, now_ms: int) -> None:
        try:
            self.replicas.on_message(name, decode(payload), now_ms)
        except DecodeError as error:
            self.effects.drop(f"standby/{name}", error)

    # -- the end of a batch -----------------------------------------------------------------

    def _on_batch_end(self, now_ms: int) -> None:
        if self._wanted_ms is not None and now_ms > self._wanted_ms:
            self.fleet.silence.paused(now_ms - self._wanted_ms, now_ms)
        if self._decide_ms is not None and now_ms >= self._decide_ms:
            self._decide()
        self.effects.floor = self.replicas.check(now_ms)
        self.effects.run_due(now_ms)
        if self._rules and self._doubt and not self._epoch_pending:
            self._ask(now_ms)
        if self._rules:
            self._work(now_ms)
            self.monitor.publish(now_ms, clients=len(self.clients.clients))
            self.replicas.poll(now_ms)
            self._links.poll(now_ms)
        self.effects.tell_dropped(now_ms)
        self._save()

    def _save(self) -> None:
        save = self.effects.end_batch()
        if save is not None:
            self.replicas.saved(save)

    def _work(self, now_ms: int) -> None:
        self._unheard.check(now_ms)
        if self._expire_ms is None or now_ms >= self._expire_ms:
            self._expire_ms = now_ms + _EXPIRE_EVERY_MS
            self.ledger.expire(now_ms)
            self.clients.expire(now_ms)
            self.fleet.expire(now_ms)
        if self.clients.stranger:
            # Our word of being active was lost on the way to a client: nothing else leads it here.
            self.clients.stranger = False
            self._shown.again()
        if self._shown.is_due(self.clients.clients.values(), now_ms):
            self.effects.command(self._presence("active", self._session))
        self._hand_on_code()
        for device in self.settlement.take_left():
            self.fleet.report(device, now_ms)
        for device in self.settlement.take_in_doubt():
            self.fleet.doubt(device)
        self.fleet.silence.busy = len(self.assignments.busy)
        self.fleet.check(now_ms)
        self.reconciler.expire(now_ms)
        self.leases.check(now_ms)
        self.later.check(now_ms)
        self._deadlines.check(now_ms)
        self._starvation.check(now_ms)
        if self.siblings.looks:
            self.siblings.check(now_ms)
        # Before new work: a device that keeps one outcome at a time has room for it by this.
        for device, rows in self.settlement.take_acknowledgements(now_ms):
            self._intake.acknowledge(device, rows)
        self.dispatcher.schedule(now_ms)
        newly_busy, self.assignments.newly_busy = self.assignments.newly_busy, {}
        for device in newly_busy.values():
            self.fleet.watch(device)
        self.clients.tell(now_ms)

    def _hand_on_code(self) -> None:
        """Code came, or a client did that may have it: get on with what waits for it."""
        for code_hash in self._codes.take_news():
            self._codes.pay(code_hash)
            self.backlog.unpark(code_hash)
        if self.clients.came:
            came, self.clients.came = self.clients.came, []
            self.backlog.unpark_of({(client.user, client.name): None for client in came})

    def _device_changed(self, device: Device) -> None:
        self.dispatcher.fleet_changed(device)

    def _device_forgotten(self, device: Device) -> None:
        self.dispatcher.forget(device)
        self.settlement.forget(device)
        self.assignments.touched.pop(device.name, None)
