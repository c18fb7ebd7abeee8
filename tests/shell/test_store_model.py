"""Any sequence of operations, with restarts and folds anywhere, against a naive model."""

import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forage_controller.core.operations import (
    ClosedAssignment,
    ForgetCheckpoints,
    ForgetCode,
    LoadCode,
    LoadOutcomes,
    LoadPage,
    Operation,
    SaveCheckpoint,
    SaveCode,
    SaveCollected,
    SaveCounters,
    SaveDeadline,
    SaveEpoch,
    SavePage,
    SaveReleased,
    SaveTime,
    TrimAssignment,
)
from shell.store_tools import (
    CLIENT,
    Model,
    WatchedStore,
    assignment_of,
    indices,
    outcomes_of,
    page_of,
    picture_of,
)

# Neighbours of one client, and one whose counter is spelt with a leading zero.
TASKS = st.sampled_from([f"{CLIENT}-0", f"{CLIENT}-1", f"{CLIENT}-01"])
NUMBERS = st.integers(1, 5)
CODES = [b"1" * 32, b"2" * 32]
LARGE = b"x" * 9_000
PAYLOADS = st.sampled_from([b"a", b"bc", LARGE])
INDEX_MAX = 12
RANGES = st.lists(st.integers(0, INDEX_MAX), min_size=2, max_size=4, unique=True).map(
    lambda edges: tuple(
        (low, high) for low, high in zip(sorted(edges)[::2], sorted(edges)[1::2], strict=False)
    )
)
ERRORS = st.lists(
    st.tuples(st.integers(0, INDEX_MAX - 1), st.just("error"), st.booleans()),
    max_size=2,
    unique_by=lambda error: error[0],
).map(tuple)


def code_of(code: bytes) -> SaveCode:
    """Content ids: one hash has one content."""
    return SaveCode(hash=code, form="pickle", data=code if code == CODES[0] else LARGE)


def page_with_its_calls(task: str, first: int, code: bytes | None) -> SavePage:
    """A repeated page brings the same calls again."""
    is_large = (first == 4) == task.endswith("-1")
    return page_of(task, first, calls=LARGE if is_large else b"small", code=code)


OPERATIONS = st.one_of(
    st.builds(SaveEpoch, epoch=st.integers(1, 2**40)),
    st.builds(code_of, st.sampled_from(CODES)),
    st.builds(ForgetCode, hash=st.sampled_from(CODES)),
    st.builds(
        page_with_its_calls,
        TASKS,
        st.sampled_from([0, 4, 8]),
        st.sampled_from([None, *CODES]),
    ),
    st.builds(assignment_of, TASKS, NUMBERS, low=st.integers(0, 4), high=st.integers(5, 12)),
    st.builds(TrimAssignment, assignment=NUMBERS, high=st.integers(1, 12)),
    st.builds(ClosedAssignment, assignment=NUMBERS),
    st.builds(outcomes_of, TASKS, NUMBERS, RANGES, data=PAYLOADS, errors=ERRORS),
    st.builds(
        SaveCounters,
        task=TASKS,
        low=st.integers(0, 5),
        high=st.integers(6, 12),
        tries=st.integers(0, 3),
        deaths=st.just(0),
        losses=st.integers(0, 1),
    ),
    st.builds(
        SaveCheckpoint,
        task=TASKS,
        index=st.integers(0, 3),
        number=st.integers(1, 9),
        data=PAYLOADS,
        device=st.sampled_from(["pi1", "pi2"]),
    ),
    st.builds(
        ForgetCheckpoints,
        task=TASKS,
        indices=st.lists(st.integers(0, 3), min_size=1, unique=True).map(tuple),
    ),
    st.builds(
        SaveDeadline, task=TASKS, first=st.sampled_from([0, 4, 8]), due_ms=st.integers(0, 2**50)
    ),
    st.builds(SaveTime, ran_ms=st.integers(0, 2**50), boot=st.text(), boot_ms=st.integers(0, 9)),
    st.builds(SaveCollected, task=TASKS, ranges=RANGES),
    st.builds(SaveReleased, task=TASKS, forget=st.booleans()),
)
STEPS = st.lists(
    st.one_of(
        st.lists(OPERATIONS, min_size=1, max_size=6),
        st.sampled_from(["wait", "restart"]),
    ),
    min_size=1,
    max_size=12,
)


def check_loads(watched: WatchedStore, model: Model) -> None:
    """What can be loaded: all that is not collected, each once, and nothing else."""
    for name, task in model.tasks.items():
        for page in task.pages.values():
            [answer] = watched.load(LoadPage(task=name, first=page.first))
            assert answer.calls == page.calls or (task.is_spent(page) and answer.calls is None)
        for wanted in (((0, 3),), ((2, 3), (9, 12)), ((0, INDEX_MAX),)):
            rows = [
                row
                for answer in watched.load(LoadOutcomes(request=1, task=name, ranges=wanted))
                for row in answer.rows
            ]
            found = [(row.assignment, row.settled, row.data, row.errors) for row in rows]
            assert len(found) == len({row[:2] for row in found})
            expected = [
                (row.assignment, row.settled)
                for row in task.archive()
                if indices(row.settled) & indices(wanted)
            ]
            everything = [
                (one.assignment, one.settled, one.data, one.errors) for one in task.outcomes
            ]
            assert {row[:2] for row in found} >= set(expected)
            assert all(row in everything for row in found)
            assert all(indices(row[1]) & indices(wanted) for row in found)
    for code in CODES:
        [answer] = watched.load(LoadCode(hash=code))
        saved = model.codes.get(code)
        assert answer.data == (None if saved is None else saved.data)


def check_gone(watched: WatchedStore, model: Model) -> None:
    for name in model.released:
        [answer] = watched.load(LoadPage(task=name, first=0))
        assert answer.calls is None
        [answer] = watched.load(LoadOutcomes(request=1, task=name, ranges=((0, INDEX_MAX),)))
        assert answer.rows == ()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS, fold_bytes=st.sampled_from([1, 600, 1 << 20]))
def test_every_sequence_is_found_again(steps: list[list[Operation] | str], fold_bytes: int) -> None:
    model = Model()
    # Memory where there is any: what is tested here is meaning, not the disk.
    fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=fast) as place:
        watched = WatchedStore(Path(place), fold_bytes=fold_bytes)
        try:
            for step in steps:
                if step == "restart":
                    watched.close()
                    watched = WatchedStore(Path(place), fold_bytes=fold_bytes)
                    assert picture_of(watched.recovered) == model.picture()
                    model.codes = {code: model.codes[code] for code in model.used_codes()}
                elif step == "wait":
                    watched.save()
                else:
                    assert isinstance(step, list)
                    watched.hand_over(*[one for one in step if model.admit(one)])
                    # What was handed over is seen by loads at once, but for an end.
                    if any(isinstance(one, SaveReleased) for one in step):
                        watched.save()
                check_loads(watched, model)
            watched.save()
            check_gone(watched, model)
            watched.close()
            watched = WatchedStore(Path(place))
            assert picture_of(watched.recovered) == model.picture()
        finally:
            watched.close()
