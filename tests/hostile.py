"""Damaged files: one that was right, changed in ways that disks, networks and people have."""

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

# What stands in files where nobody expects it; as JSON, since not all of it is a value in Python.
VALUES = (
    *("null", "true", "0", "-1", "1", "1.5", "NaN", "Infinity", "-Infinity", "1e999", "1e-999"),
    *(str(2**31 - 1), str(2**31), str(2**63), str(10**400), "9" * 5000, '""', '" "', '"x"'),
    *('"a\\nb"', '"\\ud800"', '"\\u0000"', '"../../x"', '"' + "x" * 5000 + '"', "[]", "{}", "[[]]"),
    *("[null]", '[""]', "[-1]", f"[{2**63}]", '{"": null}', "[" * 3000 + "]" * 3000),
    *("[" * 200_000, '{"a":' * 3000 + "1" + "}" * 3000),
)


def damaged(right: bytes, seed: int, count: int) -> Iterator[bytes]:
    """Yield versions of a file with bits flipped, parts cut off, left out, doubled or moved."""
    rng = random.Random(seed)
    for _ in range(count):
        data = bytearray(right)
        for _ in range(rng.choice((1, 1, 1, 2, 8))):
            at, size = rng.randrange(len(data) + 1), rng.choice((1, 2, 8, 64))
            way = rng.randrange(6)
            if way < 2 and at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            elif way == 2:
                del data[at:]
            elif way == 3:
                del data[at : at + size]
            elif way == 4:
                data[at:at] = rng.randbytes(size)
            else:
                data[at:at] = data[rng.randrange(len(data) + 1) :][:size]
        yield bytes(data)


def rewritten(right: bytes, seed: int, count: int) -> Iterator[bytes]:
    """Yield versions of a file of JSON, or of lines of it, with keys left out and other values."""
    rng = random.Random(seed)
    lines = right.splitlines() if right.count(b"\n{") else [right]
    for _ in range(count):
        changed = list(lines)
        for _ in range(rng.choice((1, 1, 2))):
            number = rng.randrange(len(lines))
            found = json.loads(lines[number])
            spots = list(_spots(found))
            inside, key = rng.choice(spots)
            if rng.random() < 0.15:
                del inside[key]
                changed[number] = json.dumps(found).encode()
            else:
                inside[key] = "@here@"
                value = rng.choice(VALUES)
                changed[number] = json.dumps(found).replace('"@here@"', value).encode()
        yield b"\n".join(changed) + b"\n"


def _spots(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _spots(inner)


def refusals(
    contents: Iterator[bytes],
    use: Callable[[bytes], object],
    allowed: type[Exception] | tuple[type[Exception], ...],
) -> int:
    """Use every version of a file. Return how many were refused, with one line each.

    Raises
    ------
    AssertionError
        If one is refused in another way, with the content that it was.
    """
    refused = 0
    for content in contents:
        try:
            use(content)
        except allowed as error:
            refused += 1
            said = str(error)
            assert said and "\n" not in said and len(said) < 3000, (said[:500], content[:3000])
        except BaseException as error:
            error.add_note(f"with the content {content[:3000]!r}")
            raise
    return refused
