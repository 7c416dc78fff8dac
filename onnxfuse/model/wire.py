"""The fields of a serialised message, as they stand in its bytes.

Protobuf copies the bytes of each field into the message that it parses and out of it again, several
times over for a large one. Here a message is walked without that: what is not asked for is passed
over. Source: the encoding page of the protocol buffers documentation.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import NamedTuple

Data = bytes | mmap.mmap
VARINT, FIXED64, LEN, FIXED32 = 0, 1, 2, 5
"""Kinds of values that fields have; groups (3 and 4) are long out of use."""
_LONGEST = 10
"""Bytes of the longest varint."""


class UnreadableError(ValueError):
    """Bytes are no message, or one of a form that is not walked."""


class Field(NamedTuple):
    """One field: its number and kind, where its key begins, and where its value begins and ends."""

    number: int
    kind: int
    begin: int
    value: int
    end: int


def fields(data: Data, start: int, stop: int, least: int = 0) -> Iterator[Field]:
    """The fields of a message that stands at ``start:stop``; none whose value is below ``least``.

    Raises `UnreadableError`.
    """
    at = start
    try:
        while at < stop:
            begin = at
            key = data[at]
            at += 1
            if key > 127:
                key, at = varint(data, begin)
            kind = key & 7
            value = at
            if kind == LEN:
                size = data[at]
                at += 1
                if size > 127:
                    size, at = varint(data, value)
                value = at
                at += size
            elif kind == VARINT:
                _, at = varint(data, at)
            elif kind in (FIXED32, FIXED64):
                at += 4 if kind == FIXED32 else 8
            else:
                raise UnreadableError("a group, or no field")
            if at > stop:
                raise UnreadableError("a field ends behind its message")
            if at - value >= least:
                yield Field(key >> 3, kind, begin, value, at)
    except IndexError:
        raise UnreadableError("a message ends within a field") from None


def varint(data: Data, at: int) -> tuple[int, int]:
    """The number at a place, and where it ends."""
    found, shift = 0, 0
    while True:
        byte = data[at]
        at += 1
        found |= (byte & 127) << shift
        if byte < 128:
            return found, at
        shift += 7
        if shift >= 7 * _LONGEST:
            raise UnreadableError("a number that does not end")


def numbers(data: Data, field: Field) -> list[int]:
    """The whole numbers of a field, of which one that is repeated may hold many."""
    if field.kind == VARINT:
        return [varint(data, field.value)[0]]
    if field.kind != LEN:
        raise UnreadableError("a number of another kind")
    found, at = [], field.value
    while at < field.end:
        number, at = varint(data, at)
        found.append(number)
    return found


def head(number: int, size: int) -> bytes:
    """What stands before a value of ``size`` bytes: the key of its field, and that size."""
    return _varint(number << 3 | LEN) + _varint(size)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)
