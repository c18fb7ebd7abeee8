"""Run by another Python: a warm worker that loads, calls and answers; see `project.py`.

stdin: a CBOR array of [blob, form, python, call body or null]; stdout: one of outcome items.
A null instead of a body loads the function only.
"""

import sys

import cbor2

from forage_wire.values import decode_call, encode_error, encode_outcome_value, load

functions = {}
outcomes = []
for blob, form, python, body in cbor2.loads(sys.stdin.buffer.read()):
    try:
        if blob not in functions:
            functions[blob] = load(blob, form, python)
        if body is not None:
            args, kwargs = decode_call(body)
            outcomes.append(encode_outcome_value(functions[blob](*args, **kwargs)))
    except BaseException as error:
        outcomes.append(encode_error(error))
sys.stdout.buffer.write(cbor2.dumps([cbor2.loads(outcome) for outcome in outcomes]))
