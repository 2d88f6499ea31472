"""Tells from the bytes of a sound file whether its end is missing, where libsndfile reads what is left without a word."""

from __future__ import annotations

import os
import re
import struct
from typing import BinaryIO

_UNKNOWN_SIZES = (0, 0xFFFFFFFF)
"""What a writer that could not seek back leaves as the size of its data."""
_LOGGED_SIZE = re.compile(
    r"^ *(?:data|riff|SSND|Data size|Riff size) *: (\d+) \(should be (\d+)\)", re.MULTILINE | re.IGNORECASE
)
_OGG_PAGE = 65_307  # bytes, the longest that there is
_MPEG_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_MPEG_1_KBITS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MPEG_2_KBITS = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)

CUT_OFF = "is cut off before the end that its header announces"
NO_LENGTH = (
    "is an MP3 of varying bit rate without a header that tells its length, so nobody knows whether all of it is read"
)


def missing_end(file: BinaryIO, kind: str, log: str) -> str | None:
    """What is wrong with the end of a file, None where nothing is known to be.

    `kind` is libsndfile's name of the format, `log` what it wrote while opening it. FLAC, and MP3 with a Xing header, announce how many samples
    they hold: counting those that are decoded is enough, and not done here.
    """
    if kind in ("WAV", "WAVEX"):
        return CUT_OFF if _wav_is_cut_off(file) else None
    if kind == "OGG":
        return None if _ogg_ends(file) else CUT_OFF
    if kind == "MP3":
        return _mp3_problem(file)
    sizes = [(int(announced), int(there)) for announced, there in _LOGGED_SIZE.findall(log)]
    return CUT_OFF if any(announced > there and announced not in _UNKNOWN_SIZES for announced, there in sizes) else None


def _wav_is_cut_off(file: BinaryIO) -> bool:
    """Whether a RIFF file is shorter than its data chunk says."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return False
    while len(chunk := file.read(8)) == 8:
        name, length = struct.unpack("<4sI", chunk)
        if name == b"data":
            return length not in _UNKNOWN_SIZES and file.tell() + length > size
        file.seek(length + length % 2, os.SEEK_CUR)
    return False


def _ogg_ends(file: BinaryIO) -> bool:
    """Whether the last page is whole and says that it is the last (RFC 3533, section 6)."""
    file.seek(-min(file.seek(0, os.SEEK_END), _OGG_PAGE), os.SEEK_END)
    tail = file.read()
    start = len(tail)
    while (start := tail.rfind(b"OggS\x00", 0, start)) >= 0:
        page = tail[start:]
        if len(page) < 27 or len(page) < 27 + page[26]:
            return False
        whole = 27 + page[26] + sum(page[27 : 27 + page[26]])
        return len(page) >= whole and bool(page[5] & 4)
    return False


def _mp3_problem(file: BinaryIO) -> str | None:
    """Walk over the frames of an MPEG layer 3 file without a Xing header: the last must be whole, and all as long as the first."""
    file.seek(0)
    data = file.read()
    place = 0
    if data[:3] == b"ID3":
        a, b, c, d = data[6:10]
        place = 10 + (a << 21 | b << 14 | c << 7 | d)
    first = _mp3_frame(data, place)
    if first is None or any(tag in data[place : place + first[1]] for tag in (b"Xing", b"Info", b"VBRI")):
        return None
    while frame := _mp3_frame(data, place):
        if frame[0] != first[0]:
            return NO_LENGTH
        place += frame[1]
    return CUT_OFF if place > len(data) else None


def _mp3_frame(data: bytes, place: int) -> tuple[int, int] | None:
    """(kbit/s, bytes) of the frame whose header stands at `place`; None where there is none. (ISO 11172-3, 2.4.1.3)"""
    header = data[place : place + 4]
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return None
    version, rate, step = header[1] >> 3 & 3, header[2] >> 2 & 3, header[2] >> 4
    if version == 1 or rate == 3 or not 0 < step < 15:
        return None
    kbits = (_MPEG_1_KBITS if version == 3 else _MPEG_2_KBITS)[step - 1]
    return kbits, (144 if version == 3 else 72) * 1000 * kbits // _MPEG_RATES[version][rate] + (header[2] >> 1 & 1)
