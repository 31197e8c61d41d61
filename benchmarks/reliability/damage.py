"""Ways in which files and options come to harm. Each takes a random generator, so that a seed gives the same harm."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

Damage = Callable[[Path, random.Random], None]

_NUMBER = re.compile(rb"(?<![\w.])-?\d+\.?\d*(?:e[-+]?\d+)?(?![\w.])")
_STRANGE = (
    b"nan",
    b"inf",
    b"-inf",
    b"1e308",
    b"-1e308",
    b"word",
    b"99999999999",
    b"-5",
    b"1e-320",
    b"",
    b"0x10",
    b"True",
)
_OTHER_NAMES = (b"forces", b"REF_forces", b"energy", b"species", b"pos", b"Lattice", b"Properties", b"stress", b"pbc")

#: What options are set to.
VALUES: tuple[Any, ...] = (
    *(float("nan"), float("inf"), -1, -1.5, 0, 1e308, 10**30, 2.5, True, None),
    *("", "word", "x" * 10_000, "nan", "\0", "../../outside", [], [None], [1, 2], {}, {"a": 1}, {"kind": []}, object),
)


def _bytes(change: Callable[[bytearray, random.Random], bytes | bytearray]) -> Damage:
    def damage(path: Path, rng: random.Random) -> None:
        path.write_bytes(change(bytearray(path.read_bytes()), rng))

    return damage


def _lines(change: Callable[[list[bytes], random.Random], None]) -> Damage:
    def damage(path: Path, rng: random.Random) -> None:
        lines = path.read_bytes().splitlines(keepends=True)
        change(lines, rng)
        path.write_bytes(b"".join(lines))

    return damage


def _block(data: bytearray, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(data))
    return start, min(len(data), start + rng.choice((1, 8, 64, 512)))


def _flip(data: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.choice((1, 1, 3, 30))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def _zero(data: bytearray, rng: random.Random) -> bytearray:
    start, end = _block(data, rng)
    data[start:end] = bytes(end - start)
    return data


def _double(data: bytearray, rng: random.Random) -> bytearray:
    start, end = _block(data, rng)
    data[start:start] = data[start:end]
    return data


def _cut(data: bytearray, rng: random.Random) -> bytearray:
    start, end = _block(data, rng)
    del data[start:end]
    return data


def _noise(data: bytearray, rng: random.Random) -> bytearray:
    start, end = _block(data, rng)
    data[start:end] = rng.randbytes(end - start)
    return data


def _swap_lines(lines: list[bytes], rng: random.Random) -> None:
    one, two = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[one], lines[two] = lines[two], lines[one]


def _remove_line(lines: list[bytes], rng: random.Random) -> None:
    del lines[rng.randrange(len(lines))]


def _double_line(lines: list[bytes], rng: random.Random) -> None:
    index = rng.randrange(len(lines))
    lines.insert(index, lines[index])


def _remove_column(lines: list[bytes], rng: random.Random) -> None:
    index = rng.randrange(len(lines))
    words = lines[index].split()
    if words:
        del words[rng.randrange(len(words))]
    lines[index] = b" ".join(words) + b"\n"


def _strange_number(data: bytearray, rng: random.Random) -> bytes:
    places = list(_NUMBER.finditer(data))
    if not places:
        return bytes(data)
    place = rng.choice(places)
    return bytes(data[: place.start()]) + rng.choice(_STRANGE) + bytes(data[place.end() :])


def _huge_count(data: bytearray, rng: random.Random) -> bytes:
    start = rng.choice([0, *(place.end() for place in re.finditer(rb"\n(?=\d+\n)", data))])
    end = data.find(b"\n", start)
    return (
        bytes(data[:start]) + rng.choice((b"99999999999", b"-99999999999", b"1000000")) + bytes(data[max(end, start) :])
    )


def _other_name(data: bytearray, rng: random.Random) -> bytes:
    present = [name for name in _OTHER_NAMES if name in data]
    if not present:
        return bytes(data)
    return bytes(data).replace(rng.choice(present), rng.choice((*_OTHER_NAMES, b"wrong", b"")), 1)


def _directory(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()
    if rng.random() < 0.5:
        (path / "data.pkl").write_text("a file")


def _loop(path: Path, _: random.Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _missing(path: Path, _: random.Random) -> None:
    path.unlink()


BYTES: dict[str, Damage] = {
    "truncated": _bytes(lambda data, rng: data[: rng.randrange(len(data))]),
    "empty": _bytes(lambda *_: b""),
    "bits flipped": _bytes(_flip),
    "block zeroed": _bytes(_zero),
    "block doubled": _bytes(_double),
    "block removed": _bytes(_cut),
    "block of noise": _bytes(_noise),
    "noise behind": _bytes(lambda data, rng: data + rng.randbytes(100)),
    "noise only": _bytes(lambda data, rng: rng.randbytes(len(data))),
    "a directory": _directory,
    "a loop of links": _loop,
    "missing": _missing,
}

TEXT: dict[str, Damage] = {
    "lines swapped": _lines(_swap_lines),
    "line removed": _lines(_remove_line),
    "line doubled": _lines(_double_line),
    "column removed": _lines(_remove_column),
    "strange number": _bytes(_strange_number),
    "huge count": _bytes(_huge_count),
    "other name": _bytes(_other_name),
    "not UTF-8": _bytes(lambda data, rng: data.replace(b" ", rng.choice((b"\xff\xfe", b"\x00", b"\xc3")), 1)),
    "web page": _bytes(lambda *_: b"<!DOCTYPE html><html><body>Please log in</body></html>"),
    "huge line": _bytes(lambda data, _: data + b"9" * 100_000),
}


def harm(path: Path, name: str, rng: random.Random) -> None:
    """Apply a damage of :data:`BYTES` or :data:`TEXT` to a file."""
    (BYTES | TEXT)[name](path, rng)


def copy(source: Path, target: Path) -> Path:
    """A copy of an input, file or folder, to be damaged."""
    if source.is_dir():
        return Path(shutil.copytree(source, target / source.name))
    return Path(shutil.copy(source, target / source.name))
