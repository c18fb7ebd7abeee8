"""`options`: from what users write to the header of a task."""

from typing import Any

import pytest

import forage
from forage.options import merge_options
from forage_wire.messages import Options
from sdk.fleet import Fleet
from sdk.functions import add


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, Options()),
        ({"requires": "camera"}, Options(requires=("camera",))),
        ({"requires": ["a", "b=c"]}, Options(requires=("a", "b=c"))),
        ({"requires": {"gpu": True, "room": "lab"}}, Options(requires=("gpu", "room=lab"))),
        ({"requires": None}, Options()),
        ({"device": "pi1"}, Options(devices=("pi1",))),
        ({"device": ["pi1", forage.DeviceInfo(name="pi2")]}, Options(devices=("pi1", "pi2"))),
        ({"device": forage.DeviceInfo(name="pi2")}, Options(devices=("pi2",))),
        ({"retries": 3, "priority": -5}, Options(retries=3, priority=-5)),
        ({"timeout_s": 1.5, "wait_s": 0}, Options(timeout_ms=1_500, wait_ms=0)),
        ({"timeout_s": 0.0001}, Options(timeout_ms=1)),
        ({"timeout_s": None}, Options(timeout_ms=0)),
        ({"at_most_once": True, "fresh": True}, Options(at_most_once=True, fresh=True)),
        ({"deadline_s": 2.5}, Options(deadline_ms=2_500)),
        ({"deadline_s": None}, Options()),
        ({"backoff_s": 0, "clones": False}, Options(backoff_ms=0, clones=False)),
        ({"exclusive": True, "lease_s": 2}, Options(exclusive=True, lease_ms=2_000)),
        ({"replicas": 3}, Options(replicas=3)),
        ({"replicas": 3, "quorum": 3}, Options(replicas=3, quorum=3)),
        ({"replicas": 3, "quorum": None}, Options(replicas=3)),
        ({"replicas": 2, "device": ["a", "b"]}, Options(replicas=2, devices=("a", "b"))),
    ],
)
def test_options_become_a_header(given: dict[str, Any], expected: Options) -> None:
    assert merge_options(Options(), given) == expected


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (
            {"retry": 3},
            TypeError,
            "no option 'retry'; the options are requires, device, retries, timeout_s, priority, "
            "at_most_once, fresh, wait_s, backoff_s, deadline_s, clones, exclusive, lease_s",
        ),
        ({"retries": -1}, ValueError, "from 0 to 1000"),
        ({"retries": 1.0}, TypeError, "integer"),
        ({"retries": True}, TypeError, "integer"),
        ({"priority": 101}, ValueError, "from -100 to 100"),
        ({"timeout_s": "5"}, TypeError, "number of seconds"),
        ({"timeout_s": -1}, ValueError, "0 or more"),
        ({"timeout_s": float("nan")}, ValueError, "0 or more"),
        ({"fresh": 1}, TypeError, "True or False"),
        ({"lease_s": 0.1}, ValueError, "from 0.2 to 3600"),
        ({"exclusive": "yes"}, TypeError, "True or False"),
        ({"replicas": 0}, ValueError, "from 1 to 16"),
        ({"replicas": 2.0}, TypeError, "integer"),
        ({"replicas": 3, "quorum": 0}, ValueError, "from 1 to 16"),
        ({"replicas": 3, "quorum": 4}, ValueError, "quorum=4 of replicas=3 can never agree"),
        ({"quorum": 2}, ValueError, "quorum=2 of replicas=1 can never agree"),
        ({"replicas": 2, "at_most_once": True}, ValueError, "contradict each other"),
        ({"replicas": 2, "exclusive": True}, ValueError, "contradict each other"),
        ({"replicas": 3, "device": ["a", "b"]}, ValueError, "device names 2"),
        ({"replicas": 2, "device": ["a", "a"]}, ValueError, "device names 1"),
        ({"device": "Not A Name"}, ValueError, "device's name"),
        ({"device": [3]}, ValueError, "device's name"),
        ({"requires": [""]}, ValueError, "requires takes"),
        ({"requires": ["x"] * 33}, ValueError, "at most 32"),
    ],
)
def test_wrong_options_are_explained(
    given: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        merge_options(Options(), given)


def test_another_number_of_replicas_has_a_majority_of_its_own() -> None:
    view = merge_options(Options(), {"replicas": 3, "quorum": 3})
    assert merge_options(view, {"replicas": 5}) == Options(replicas=5)
    assert merge_options(view, {"retries": 1}) == Options(replicas=3, quorum=3, retries=1)
    assert merge_options(view, {"replicas": 1}) == Options()


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"replicas": 3, "agree": 5}, TypeError, "agree takes a function"),
        ({"agree": max}, ValueError, "give replicas= too"),
    ],
)
def test_a_comparison_is_a_function_of_replicas_results(
    held: forage.Client, given: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        held.options(**given)
    assert held.options(replicas=3, agree=max).options(agree=None) is not None


def test_each_call_is_compared_by_the_function_that_it_was_submitted_with(
    held: forage.Client,
) -> None:
    held.submit(add, 1)
    view = held.options(replicas=2)
    for agree in (None, max, min):
        votes = view.options(agree=agree).submit(add, 2)._bound().votes
        assert votes is not None
        assert votes._agree is agree


def test_a_views_submissions_carry_its_options(holding: Fleet, held: forage.Client) -> None:
    view = held.options(retries=2).options(device="pi1")
    future = view.submit(add, 1, 2)
    batch = view.submit_all(add, [1])
    plain = held.submit(add, 1)
    holding.wait(lambda: len(holding.calls) == 3)
    for name in (future.id, f"{batch.id}.0"):
        assert holding.calls[name].header.options == Options(retries=2, devices=("pi1",))
    assert holding.calls[plain.id].header.options == Options()


def test_a_view_cannot_be_shut_down_or_used_as_a_context(held: forage.Client) -> None:
    view = held.options(retries=1)
    with pytest.raises(RuntimeError, match="view made by options"):
        view.shutdown()
    with pytest.raises(RuntimeError, match="view made by options"), view:
        pass
    assert not held.submit(add, 1).done()
