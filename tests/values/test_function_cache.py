"""The cache of shipped functions: what is used again, what is shipped anew, what it keeps alive."""

import gc
import importlib
import math
import sys
import weakref
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

from forage_wire.errors import NotSerializable
from forage_wire.values import FunctionCache, load, ship


def make(text: str, **names: Any) -> FunctionType:
    """The function `f` of a text, as if typed into `__main__`."""
    namespace: dict[str, Any] = {"__name__": "__main__", **names}
    exec(text, namespace)
    function: FunctionType = namespace["f"]
    return function


def call(shipped: Any, *args: Any) -> Any:
    return load(shipped.blob, shipped.form, shipped.python)(*args)


def test_an_unchanged_function_is_shipped_once() -> None:
    function = make("import math\ndef g(x): return x + K\ndef f(x): return g(math.floor(x))", K=3)
    cache = FunctionCache()

    first = cache.get(function)

    assert cache.get(function) is first
    assert call(first, 1.5) == 4


@pytest.mark.parametrize("callable_", [math.sqrt, len, int, ship])
def test_what_devices_have_is_shipped_once(callable_: Any) -> None:
    cache = FunctionCache()

    assert cache.get(callable_) is cache.get(callable_)


def test_another_global_ships_anew() -> None:
    function = make("def g(x): return x + K\ndef f(x): return g(x)", K=3)
    cache = FunctionCache()
    first = cache.get(function)

    function.__globals__["K"] = 4
    second = cache.get(function)

    assert call(first, 1) == 4
    assert call(second, 1) == 5
    assert cache.get(function) is second


def test_another_inner_function_ships_anew() -> None:
    function = make("def g(x): return x\ndef f(x): return g(x)")
    cache = FunctionCache()
    assert call(cache.get(function), 1) == 1

    function.__globals__["g"] = make("def f(x): return -x")

    assert call(cache.get(function), 1) == -1


def test_another_code_or_default_ships_anew() -> None:
    function = make("def f(x, y=1, *, z=1): return x + y + z")
    cache = FunctionCache()
    assert call(cache.get(function), 1) == 3

    function.__defaults__ = (10,)
    assert call(cache.get(function), 1) == 12
    function.__kwdefaults__["z"] = 100  # type: ignore[index]
    assert call(cache.get(function), 1) == 111
    function.__code__ = make("def f(x, y=1, *, z=1): return x * y * z").__code__
    assert call(cache.get(function), 2) == 2_000


def test_a_name_that_appears_ships_anew() -> None:
    function = make("def f(x): return len(x)")
    cache = FunctionCache()
    assert call(cache.get(function), "ab") == 2

    function.__globals__["len"] = make("def f(x): return 'mine'")

    assert call(cache.get(function), "ab") == "mine"


def test_a_closure_is_followed() -> None:
    text = """
def outer():
    count = 1
    def f(x): return x + count
    def change(to):
        nonlocal count
        count = to
    return f, change
f, change = outer()
"""
    function = make(text)
    cache = FunctionCache()
    first = cache.get(function)
    assert cache.get(function) is first
    assert call(first, 1) == 2

    function.__globals__["change"](5)

    assert call(cache.get(function), 1) == 6


@pytest.mark.parametrize("state", [[1], {"a": 1}, {1}, bytearray(b"x"), ([1],)])
def test_state_that_can_change_is_pickled_at_each_submit(state: Any) -> None:
    function = make("def f(): return STATE", STATE=state)
    cache = FunctionCache()
    first = cache.get(function)

    assert call(first) == state
    assert cache.get(function) is not first
    assert cache.get(function) == first
    inner = state[0] if isinstance(state, tuple) else state
    inner.clear()
    assert call(cache.get(function)) == state
    assert cache.get(function).hash != first.hash


def test_functions_die_when_their_user_lets_them_go() -> None:
    function = make("def g(): return f\ndef f(x): return (g, x, STATE)", STATE=[1])
    closure = make("def outer():\n    def f(x): return f(x)\n    return f\nf = outer()")
    cache = FunctionCache()
    cache.get(function)
    cache.get(closure)
    cache.get(make("def f(x): return x"))
    watched = [weakref.ref(function), weakref.ref(closure)]
    assert len(cache) >= 2

    function.__globals__.clear()
    closure.__globals__.clear()
    del function, closure
    gc.collect()

    assert [reference() for reference in watched] == [None, None]
    assert len(cache) == 0


def test_bound_methods_are_pickled_at_each_submit() -> None:
    cache = FunctionCache()
    items = [1, 2]

    first = cache.get(items.index)
    items.insert(0, 5)
    second = cache.get(items.index)

    assert (call(first, 2), call(second, 2)) == (1, 2)


def test_a_module_that_is_loaded_anew_ships_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "reloaded_helpers.py"
    path.write_text("def f(x):\n    return x + 1\n")
    module = importlib.import_module("reloaded_helpers")
    try:
        function = make("def f(x): return module.f(x)", module=module)
        cache = FunctionCache()
        first, direct = cache.get(function), cache.get(module.f)
        assert cache.get(function) is first
        assert cache.get(module.f) is direct

        path.write_text("def f(x):\n    return x + 1_000\n")
        importlib.reload(module)

        assert call(cache.get(module.f), 1) == 1_001
        assert cache.get(function) is not first
        assert cache.get(module.f).form == "source"
    finally:
        del sys.modules["reloaded_helpers"]


def test_a_file_that_changed_since_its_import_goes_as_it_runs_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "edited_helpers.py"
    path.write_text("FACTOR = 2\ndef f(x):\n    return x * FACTOR\n")
    module = importlib.import_module("edited_helpers")
    try:
        assert ship(module.f).form == "source"
        module.FACTOR = 3  # type: ignore[attr-defined]
        patched = ship(module.f)
        module.FACTOR = 2  # type: ignore[attr-defined]
        path.write_text("FACTOR = 2\ndef f(x):\n    return x * FACTOR + 1_000\n")
        edited = ship(module.f)
    finally:
        del sys.modules["edited_helpers"]

    assert (patched.form, edited.form) == ("pickle", "pickle")
    assert "FACTOR has another value" in patched.reason_not_source
    assert "has changed since it was imported" in edited.reason_not_source
    assert (call(patched, 1), call(edited, 1)) == (3, 2)


def test_what_cannot_travel_is_named() -> None:
    function = make("def f(x): return LOCK", LOCK=__import__("threading").Lock())

    with pytest.raises(NotSerializable, match=r"its global LOCK, a _thread\.lock"):
        FunctionCache().get(function)


def test_a_hit_costs_no_pickling(monkeypatch: pytest.MonkeyPatch) -> None:
    function = make("def f(x): return x + K", K=3)
    cache = FunctionCache()
    first = cache.get(function)
    calls: list[str] = []
    # Counts calls into the pickler and the planner, whatever they would do.
    monkeypatch.setattr("forage_wire.values.function_cache.plan", calls.append)
    monkeypatch.setattr("forage_wire.values.function_cache.carry_out", calls.append)

    assert all(cache.get(function) is first for _ in range(100))
    assert calls == []
