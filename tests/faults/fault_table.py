"""The expected outcome of each operation under each fault.

This is the one table, and docs/faults.md is made from it.
"""

from __future__ import annotations

from fault_cells import FAULTS, OPERATIONS

OUTCOMES = {
    "R": "right",
    "M": "memory",
    "K": "kept",
    "U": "kept, unassigned",
    "L": "left out",
    "S": "ServerError",
    "D": "ServerTimeoutError",
    "T": "TransferError",
    "G": "LoginError",
    "A": "AccessDeniedError",
    "N": "NotInArchiveError",
    "C": "CacheError",
}
# A row for each fault; the columns are the operations, in the order of fault_cells.OPERATIONS.
TABLE = """
502 once                    | R M R R M R R R M R R R R R R R
503 once, Retry-After: 2    | R M R R M R R R M R R R R R R R
429 once                    | R M R R M R R R M R R R R R R R
the login has ended         | R M R R M R R R M R R R R R R R
login page with 200, once   | S M R R M R R R M R R R R R R R
the connection is cut, once | R M R R M R R R M R R R R R R R
500 once                    | S M R S M K R S M S S S K S L R
500                         | S M S S M K K S M S S S K S L R
502                         | S M S S M K K S M S S S K S L R
503, Retry-After: 600       | S M S S M K K S M S S S K S L R
504                         | D M D D M K K D M D D D K D L R
401                         | G M G G M K K G M G G G K G L R
403                         | G M A A M K K A M A A A K A L R
404                         | S M N N M U U N M N N N K N L R
409                         | S M S S M K K S M S S S K S L R
413                         | S M S S M K K S M S S S K S L R
422                         | S M S S M K K S M S S S K S L R
login page with 200         | S M S S M K K T M T T T K S L R
maintenance page with 200   | S M S S M K K T M T T T K S L R
the connection is cut       | T M T T M K K T M T T T K T L R
the body is cut short       | T M T T M K K T M T T T K T L R
the body ends too early     | S M T T M K K T M T T T K N L R
half a JSON document        | S M T T M K K T M T T T K T L R
JSON of another shape       | S M S T M K K T M T T T K T L R
JSON that is a list         | S M S T M K K T M T T T K T L R
the body stalls             | D M D D M K K D M D D D K D L R
no answer in time           | D M D D M K K D M D D D K D L R
the disk is full            | R M M C M C C C M M R R K C C M
"""

EXPECTED: dict[str, dict[str, str]] = {operation.name: {} for operation in OPERATIONS}
for _row in TABLE.strip().splitlines():
    _fault, _, _codes = _row.partition("|")
    for _operation, _code in zip(EXPECTED, _codes.split(), strict=True):
        EXPECTED[_operation][_fault.strip()] = OUTCOMES[_code]

_HEAD = """# What happens when things go wrong

For each operation and each fault below there is a test of its own (`tests/faults/test_fault_table.py`), which compares
the outcome with these tables. "Once" means that only the first request met the fault. Otherwise every request met it,
until the operation had ended. Then XNAT works again, and the test checks that the operation works, and that everything
that was accepted is in XNAT: a label once, with its bytes.

| outcome | meaning |
|---|---|
| right | The result is right: what failed was sent again, or was not needed. |
| memory | The result is right, and nothing that fails was needed for it. |
| kept | It is safe on this disk, and is sent by itself later. `save_label` raises `LabelNotUploadedError`. |
| kept, unassigned | XNAT has no such image. The label is safe, until a person says `monailabel-xnat outbox assign`. |
| left out | The case is left out of the training set, and `status()` and the manifest name it with the reason. |
| an error | The error says what was wrong and what helps. Once XNAT is well again, the same call works. |
"""


def as_markdown() -> str:
    """Return the page docs/faults.md."""
    parts = [_HEAD]
    for operation in OPERATIONS:
        found: dict[str, list[str]] = {}
        for fault in FAULTS:
            found.setdefault(EXPECTED[operation.name][fault.name], []).append(fault.name)
        lines = [f"| {outcome_name(what)} | {'; '.join(faults)} |" for what, faults in found.items()]
        head = [f"\n## {operation.name[0].upper()}{operation.name[1:]}\n", "| outcome | faults |", "|---|---|"]
        parts.append("\n".join([*head, *lines, ""]))
    return "".join(parts)


def outcome_name(what: str) -> str:
    """Return an outcome as the page shows it."""
    return f"`{what}`" if what.endswith("Error") else what
