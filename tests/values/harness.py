"""Imported by the scripts that tests write: ships CALLS to a worker, prints what came back.

With FORAGE_TEST_FRAMES in the environment the calls go into that file instead.
"""

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cbor2

from forage_wire.errors import ForageError
from forage_wire.values import decode_outcome_item, encode_call, rebuild_error, ship


def main(calls: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]]) -> None:
    """Print a JSON array with one report for each call."""
    reports: list[dict[str, Any]] = []
    frames = []
    for function, args in calls:
        shipped = ship(function)
        reports.append(
            {
                "form": shipped.form,
                "why": shipped.reason_not_source,
                "python_min": shipped.python_min,
                "modules": sorted(name for name, _ in shipped.modules),
                "hash": shipped.hash.hex(),
            }
        )
        body = encode_call(args, {}, function, shipped)
        frames.append([shipped.blob, shipped.form, shipped.python, body])
        reports[-1]["kind"] = body[1]
    if "FORAGE_TEST_FRAMES" in os.environ:
        Path(os.environ["FORAGE_TEST_FRAMES"]).write_bytes(cbor2.dumps(frames))
        return
    answer = subprocess.run(
        [os.environ["FORAGE_TEST_WORKER"], os.environ["FORAGE_TEST_WORKER_SCRIPT"]],
        input=cbor2.dumps(frames),
        stdout=subprocess.PIPE,
        cwd="/",
        timeout=60,
        check=True,
    )
    items = cbor2.loads(answer.stdout)
    for report, item, (_, args) in zip(reports, items, calls, strict=True):
        try:
            outcome = decode_outcome_item(item)
        except ForageError as error:
            report.update(ok=False, error=type(error).__name__, text=str(error))
            continue
        if outcome.ok:
            value = outcome.value
            same = bool(args) and type(value) is type(args[0])
            report.update(ok=True, value=repr(value), type_of_argument=same)
        else:
            failure = rebuild_error(outcome.value, "pi", 1)
            report.update(ok=False, error=type(failure).__name__, text=str(failure))
            report.update(traceback=str(failure.__cause__))
    print(json.dumps(reports))
