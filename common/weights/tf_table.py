"""TensorFlow's checkpoint index: a table of sorted keys in LevelDB's format, read without TensorFlow.

Blocks of prefix-compressed entries, each followed by one compression byte and a masked CRC-32C; a footer of 48 bytes
points to the block of blocks. Source: LevelDB, doc/table_format.md; TensorFlow, core/lib/io/format.cc.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

from common.weights.damage import damaged, read_bytes

WHAT = "TensorFlow checkpoint index"
MAGIC = 0xDB4775248B80FB57
FOOTER, TRAILER = 48, 5
LIMIT = 64 * 2**20  # bytes; the index of GPT-2 XL takes 21,000


class Fault(ValueError):
    """What is wrong inside the bytes; whoever knows the file turns it into a UserError."""


def crc32c(data: bytes, crc: int = 0) -> int:
    """CRC-32C (Castagnoli) of the bytes, continuing from `crc`."""
    import google_crc32c

    return google_crc32c.extend(crc, data)


def masked(crc: int) -> int:
    """The form in which TensorFlow stores a CRC: rotated by 15 bits, plus a constant."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The base-128 number at a place, below 2^64, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise Fault("a number runs past the end")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            if value >= 2**64:
                break
            return value, at
    raise Fault("a number is longer than 64 bits")


def _block(data: bytes, offset: int, size: int) -> bytes:
    """The content of the block at a handle, its checksum verified."""
    end = offset + size
    if end + TRAILER > len(data) - FOOTER:
        raise Fault(f"a block at {offset} of {size} bytes does not fit in the file")
    kind, stored = data[end], struct.unpack_from("<I", data, end + 1)[0]
    if masked(crc32c(data[offset : end + 1])) != stored:
        raise Fault(f"the checksum of the block at {offset} is wrong")
    if kind != 0:
        raise Fault(f"the block at {offset} is compressed (kind {kind}), which GPT-2's checkpoints are not")
    return data[offset:end]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block; each key shares a prefix with the one before."""
    if len(block) < 4:
        raise Fault("a block is too short")
    restarts = struct.unpack_from("<I", block, len(block) - 4)[0]
    end = len(block) - 4 - 4 * restarts
    if end < 0:
        raise Fault("a block's restart array is longer than the block")
    at, key = 0, b""
    while at < end:
        shared, at = varint(block, at)
        fresh, at = varint(block, at)
        length, at = varint(block, at)
        if shared > len(key) or at + fresh + length > end:
            raise Fault("an entry runs past the end of its block")
        following = key[:shared] + block[at : at + fresh]
        if key and following <= key:
            raise Fault("the keys are not in order")
        key = following
        yield key, block[at + fresh : at + fresh + length]
        at += fresh + length


def _handle(data: bytes, at: int = 0) -> tuple[int, int, int]:
    offset, at = varint(data, at)
    size, at = varint(data, at)
    return offset, size, at


def read_table(path: Path | str) -> dict[bytes, bytes]:
    """Every key and value of the table, or a UserError that says what is damaged."""
    data = read_bytes(path, WHAT, LIMIT)
    try:
        if len(data) < FOOTER or struct.unpack_from("<Q", data, len(data) - 8)[0] != MAGIC:
            raise Fault("it does not end with the magic number of a table")
        footer = data[-FOOTER:-8]
        meta_offset, meta_size, at = _handle(footer)
        index_offset, index_size, at = _handle(footer, at)
        if any(footer[at:]):
            raise Fault("its footer is not padded with zeros")
        _block(data, meta_offset, meta_size)
        found: dict[bytes, bytes] = {}
        for _, value in _entries(_block(data, index_offset, index_size)):
            offset, size, _ = _handle(value)
            for key, content in _entries(_block(data, offset, size)):
                if key in found:
                    raise Fault(f"the key {key!r} comes twice")
                found[key] = content
    except Fault as fault:
        raise damaged(path, WHAT, fault) from fault
    return found
