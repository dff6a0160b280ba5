"""A folder of files → a list of their checksums in it, and later what is no longer as it was written.

CRC-32 finds what storage and copies do to files (turned bits, lost ends); it is no signature against somebody.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

LIST = "checksums.json"
PIECE = 2**22  # bytes read at once


def write(folder: Path) -> None:
    """List every file of `folder`, those in its folders too, in `folder/checksums.json`."""
    (folder / LIST).unlink(missing_ok=True)
    files = {str(file.relative_to(folder)): _of(file) for file in sorted(folder.rglob("*")) if file.is_file()}
    (folder / LIST).write_text(json.dumps({"files": files, "crc32": _of_list(files)}, indent=1))


def damage(folder: Path) -> str | None:
    """What is not as it was written, in words; None where all is, or where nothing was listed (an older version's)."""
    try:
        listed = json.loads((folder / LIST).read_text(encoding="utf-8"))
        files, itself = listed["files"], listed["crc32"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return f"{LIST} cannot be read"
    if itself != _of_list(files):
        return f"{LIST} is not as it was written"
    for name, (size, crc) in files.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is gone"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes, not {size}"
        if _of(file)[1] != crc:
            return f"{name} is not as it was written (checksum)"
    return None


def _of(file: Path) -> list[int]:
    """Bytes and checksum."""
    crc = size = 0
    with open(file, "rb") as handle:
        while piece := handle.read(PIECE):
            crc, size = zlib.crc32(piece, crc), size + len(piece)
    return [size, crc]


def _of_list(files: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(files, sort_keys=True).encode())
