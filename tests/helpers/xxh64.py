"""XXH64 in Python, from its specification, which the C++ is compared with."""

import struct

P1, P2, P3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
P4, P5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
WORD = 2**64 - 1


def rotated(value: int, bits: int) -> int:
    return (value << bits | value >> 64 - bits) & WORD


def mixed(lane: int, word: int) -> int:
    return rotated((lane + word * P2) & WORD, 31) * P1 & WORD


def xxh64(content: bytes) -> int:
    """Compute XXH64 with seed 0 as its specification defines it."""
    at, result = 0, P5
    if len(content) >= 32:
        lanes = [P1 + P2 & WORD, P2, 0, -P1 & WORD]
        while len(content) - at >= 32:
            words = struct.unpack_from("<4Q", content, at)
            lanes = [mixed(lane, word) for lane, word in zip(lanes, words, strict=True)]
            at += 32
        result = sum(rotated(lanes[i], bits) for i, bits in enumerate((1, 7, 12, 18))) & WORD
        for lane in lanes:
            result = ((result ^ mixed(0, lane)) * P1 + P4) & WORD
    result = result + len(content) & WORD
    while len(content) - at >= 8:
        (word,) = struct.unpack_from("<Q", content, at)
        result = (rotated(result ^ mixed(0, word), 27) * P1 + P4) & WORD
        at += 8
    if len(content) - at >= 4:
        (word,) = struct.unpack_from("<I", content, at)
        result = (rotated(result ^ word * P1 & WORD, 23) * P2 + P3) & WORD
        at += 4
    for byte in content[at:]:
        result = rotated(result ^ byte * P5 & WORD, 11) * P1 & WORD
    result = (result ^ result >> 33) * P2 & WORD
    result = (result ^ result >> 29) * P3 & WORD
    return result ^ result >> 32
