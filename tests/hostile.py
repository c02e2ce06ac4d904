"""Damaged files: one that was right, changed in ways that disks, networks and people have."""

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import onnx

# What stands in files where nobody expects it; as JSON, since not all of it is a value in Python.
VALUES = (
    *("null", "true", "0", "-1", "1", "1.5", "NaN", "Infinity", "-Infinity", "1e999", "1e-999"),
    *(str(2**31 - 1), str(2**31), str(2**63), str(10**400), "9" * 5000, '""', '" "', '"x"'),
    *('"a\\nb"', '"\\ud800"', '"\\u0000"', '"../../x"', '"' + "x" * 5000 + '"', "[]", "{}", "[[]]"),
    *("[null]", '[""]', "[-1]", f"[{2**63}]", '{"": null}', "[" * 3000 + "]" * 3000),
    *("[" * 200_000, '{"a":' * 3000 + "1" + "}" * 3000),
)

# The same for text of any kind: what terminals obey, what has no end, what is no UTF-8.
SPLICES = (
    *(b"\0", b"\x1b[2J", b"\x7f", b"\r", b"\t", b"\n\n", b"\xff\xfe", b"\xed\xa0\x80"),
    *("\x85".encode(), "\u2028".encode(), "\u202e".encode(), b'"', b"=", b":", b"*", b"%", b"-1"),
    *(b"1e999", b"inf", b"nan", b"2147483648", b"9223372036854775808", b"9" * 5000, b"x" * 70_000),
    *(b"[" * 20_000, b"{" * 20_000),
)
# And for models, whose fields have types.
NUMBERS = (0, 1, -1, 2, 7, 26, 2**31 - 1, 2**31, -(2**31), 2**40, 2**63 - 1, -(2**63))
STRINGS = (
    "",
    "x",
    "a\nb",
    "\x1b[31m",
    "\0",
    "\u202e",
    "x" * 5000,
    "Conv",
    "Loop",
    "SAME_UPPER",
    "..",
)
FLOATS = (0.0, -1.0, 0.5, 1e30, 1e-45, float("nan"), float("inf"))


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


def spliced(right: bytes, seed: int, count: int) -> Iterator[bytes]:
    """Yield versions of a text with something unexpected in it, or in place of a part."""
    rng = random.Random(seed)
    for _ in range(count):
        data = bytearray(right)
        for _ in range(rng.choice((1, 1, 2, 4))):
            at = rng.randrange(len(data) + 1)
            data[at : at + rng.choice((0, 0, 1, 4, 10))] = rng.choice(SPLICES)
        yield bytes(data)


def remodelled(right: bytes, seed: int, count: int) -> Iterator[bytes]:
    """Yield versions of an ONNX file with fields cleared, doubled, moved, or of other values."""
    rng = random.Random(seed)
    for _ in range(count):
        model = onnx.ModelProto.FromString(right)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            _change(model, rng)
        yield model.SerializeToString()


def _change(model: Any, rng: random.Random) -> None:
    parts = list(_parts(model))
    # Of each kind alike: most are dimensions.
    kind = rng.choice(sorted({type(part).__name__ for part in parts}))
    part = rng.choice([part for part in parts if type(part).__name__ == kind])
    given = [field for field, _ in part.ListFields()]
    field = rng.choice(given if given and rng.random() < 0.7 else list(part.DESCRIPTOR.fields))
    if rng.random() < 0.12:
        part.ClearField(field.name)
        return
    value = _value(field, model, parts, rng)
    if value is None:
        return  # There is nothing of this kind to copy.
    if not field.is_repeated:
        if field.message_type:
            getattr(part, field.name).CopyFrom(value)
        else:
            setattr(part, field.name, value)
        return
    items = getattr(part, field.name)
    if items and rng.random() < 0.4:
        del items[rng.randrange(len(items))]
    if rng.random() < 0.7:
        items.insert(rng.randrange(len(items) + 1), value)


def _value(field: Any, model: Any, parts: list[Any], rng: random.Random) -> Any:
    if field.message_type:
        alike = [part for part in parts if part.DESCRIPTOR is field.message_type]
        if not alike:
            return None
        found = type(alike[0])()
        found.CopyFrom(rng.choice(alike))
        return found
    if field.enum_type:
        return rng.choice(field.enum_type.values).number
    if field.type == field.TYPE_STRING:
        return rng.choice((*STRINGS, *(name for node in model.graph.node for name in node.output)))
    if field.type == field.TYPE_BYTES:
        return rng.choice((b"", b"\xff", rng.randbytes(64), b"SAME_UPPER", b"a\nb", b"\x1b[1m"))
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return rng.choice(FLOATS)
    bits = 31 if field.type in (field.TYPE_INT32, field.TYPE_UINT32) else 63
    least = 0 if field.type in (field.TYPE_UINT32, field.TYPE_UINT64) else -(2**bits)
    return max(least, min(rng.choice(NUMBERS), 2**bits - 1))


def _parts(message: Any) -> Iterator[Any]:
    yield message
    for field, value in message.ListFields():
        if field.message_type:
            for inner in value if field.is_repeated else [value]:
                yield from _parts(inner)


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
            assert said and said.isprintable() and len(said) < 3000, (said[:500], content[:3000])
        except BaseException as error:
            error.add_note(f"with the content {content[:3000]!r}")
            raise
    return refused
