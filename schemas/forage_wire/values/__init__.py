"""How arguments, results, functions and errors of users become bytes, and come back.

Only the SDK and the agent's worker process import this package: it runs pickles and users'
code. The controller and all cores pass its bytes on unread.

**Kinds of values.** A value goes in the first kind that holds it exactly (exact types and
not subclasses, order of maps, no two references to one mutable container):

    0 plain   CBOR without tags: None, bool, int of 64 bits and a sign, float, str, bytes,
              list, dict with str keys
    1 cbor    CBOR with tags, also: any int, tuple, set, frozenset, complex, bytearray, range,
              datetime, date, time, timedelta, Decimal, Fraction, numpy arrays and scalars,
              dicts with other keys (module `exact` lists the tags)
    2 pickle  pickle protocol 5 without code: any Python of protocol 5 reads it
    3 code    a pickle that holds code, tied to the Python minor that wrote it
    4 handle  reserved

**Wire forms.**

    call body        bytes holding one CBOR array:
                     [0, args: array, kwargs: map]         kwargs is left out where empty
                     [1, args: array, kwargs: map]         the same, tags inside
                     [2, pickle of (args, kwargs): bytes]
                     [3, pickle of (args, kwargs): bytes, python: text "3.11"]
    outcome item     one CBOR item:
                     [value]                               plain
                     [1, value]                            tags inside
                     [2, pickle: bytes]
                     [3, pickle: bytes, python: text]
                     {...}                                 an error (module `failures`)
    code blob        bytes holding one CBOR map (module `shipping`)

**Names.** `calls`: `encode_call`, `decode_call`, `encode_outcome_value`,
`decode_outcome_item`. `shipping`: `ship`. `function_cache`: `FunctionCache`. `loading`: `load`. `failures`:
`encode_error`, `rebuild_error`. System-made errors have a module without users' bytes,
`forage_wire.system_errors`, so that cores can make them too.
"""

from forage_wire.values.calls import (
    KIND_CBOR,
    KIND_CODE,
    KIND_HANDLE,
    KIND_PICKLE,
    KIND_PLAIN,
    Outcome,
    decode_call,
    decode_outcome_item,
    encode_call,
    encode_outcome_value,
    read_plain_calls,
)
from forage_wire.values.failures import RemoteTraceback, encode_error, rebuild_error
from forage_wire.values.function_cache import FunctionCache
from forage_wire.values.loading import enter, load
from forage_wire.values.shipping import ShippedFunction, ship

__all__ = [
    "KIND_PLAIN",
    "KIND_CBOR",
    "KIND_PICKLE",
    "KIND_CODE",
    "KIND_HANDLE",
    "Outcome",
    "encode_call",
    "decode_call",
    "encode_outcome_value",
    "read_plain_calls",
    "decode_outcome_item",
    "ShippedFunction",
    "FunctionCache",
    "ship",
    "enter",
    "load",
    "RemoteTraceback",
    "encode_error",
    "rebuild_error",
]
