"""Turns what teachers say of pictures into files, so that a picture seen before costs a read instead of a forward pass.

One file an entry, `FOLDER/<encoder identity>/<2 digits>/<name>.safetensors`: the summary and the map of one view, in
bf16, with a checksum. The name is a hash of everything that decides them. Files are written under a temporary name and
renamed, so runs, ranks and processes may share a folder, be killed at any time, and delete any of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from teachers.features import Encoder, Features, Size

DTYPE = torch.bfloat16
TEMPORARY = ".tmp"
STALE = 3600.0  # seconds after which a temporary file is a dead process's
LOOKS = 8  # the folder is measured again after every eighth of the room left, since other processes fill it too


class Damaged(Exception):
    """A file that does not hold what its name and checksum say."""


class TeacherCache:
    """Features of frozen encoders by encoder, crop, size and precision; computed where they are missing.

    Args:
        folder: made on the first write.
        max_gib: size of the folder past which nothing more is written; what is there is still read.
        say: where the one line goes that tells so.
    """

    def __init__(self, folder: str | Path, max_gib: float, say: Callable[[str], None] = print):
        self.folder, self.limit, self.say = Path(folder).expanduser(), int(max_gib * 2**30), say
        self._counts: Counter[str] = Counter(hits=0, misses=0, rebuilt=0)
        # A sharpener hashes its weights whenever it is asked who it is; frozen, it stays who it was.
        self._homes: WeakKeyDictionary[Encoder, Path] = WeakKeyDictionary()
        self._allowance = 0  # bytes to write before the folder is measured again
        self._closed = False  # nothing more is written

    @property
    def counts(self) -> dict[str, int]:
        """Views found, views computed, and those of the computed whose file was damaged; since the process began."""
        return dict(self._counts)

    def features(self, encoder: Encoder, images: Tensor, keys: Sequence[str], note: str = "") -> Features:
        """What `encoder(images)` says, rounded to bf16 whether read or computed; fp32 on the device of `images`.

        Args:
            images: B×3×H×W in [0, 1].
            keys: one text a row that names its pixels at this size: `Batch.crops`.
            note: whatever else changes the answer. The precision of an autocast around the call is known.
        """
        size = (images.shape[2], images.shape[3])
        names = [self._name(key, size, note, images.device) for key in keys]
        rows: dict[str, Features] = {}
        rewrite = set()
        for name in dict.fromkeys(names):
            try:
                rows[name] = self._read(encoder, name, size)
            except FileNotFoundError:
                pass
            except (Damaged, OSError):
                rewrite.add(name)
        absent: dict[str, int] = {}
        for row, name in enumerate(names):
            if name not in rows:
                absent.setdefault(name, row)
        self._counts.update(hits=len(names) - len(absent), misses=len(absent), rebuilt=len(rewrite))
        if absent:
            computed = encoder(images if len(absent) == len(images) else images[list(absent.values())])
            computed = Features(*(None if part is None else part.to(DTYPE) for part in computed))
            kept = Features(*(None if part is None else part.cpu() for part in computed))
            for place, name in enumerate(absent):
                rows[name] = Features(*(None if part is None else part[place] for part in kept))
                self._write(encoder, name, rows[name], replace=name in rewrite)
            if list(absent) == names:  # nothing was read: what was computed is still on the device
                return Features(*(None if part is None else part.float() for part in computed))
        summaries, maps = zip(*(rows[name] for name in names))
        stacked = (None if summaries[0] is None else torch.stack(summaries), torch.stack(maps))
        return Features(*(None if part is None else part.to(images.device).float() for part in stacked))

    def _name(self, key: str, size: Size, note: str, device: torch.device) -> str:
        autocast = torch.is_autocast_enabled(device.type)
        precision = str(torch.get_autocast_dtype(device.type)) if autocast else ""
        return hashlib.blake2b(repr((key, size, note, precision)).encode(), digest_size=16).hexdigest()

    def _path(self, encoder: Encoder, name: str) -> Path:
        if encoder not in self._homes:
            self._homes[encoder] = self.folder / encoder.identity
        return self._homes[encoder] / name[:2] / f"{name[2:]}.safetensors"

    # Files --------------------------------------------------------------------------------------------------------

    def _read(self, encoder: Encoder, name: str, size: Size) -> Features:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._path(encoder, name), framework="pt") as file:
                held = {part: file.get_tensor(part) for part in file.keys()}  # noqa: SIM118
                checksum = (file.metadata() or {}).get("crc32")
        except SafetensorError as error:
            raise Damaged from error
        if checksum != checksum_of(held) or _shapes(held) != _wanted(encoder, size):
            raise Damaged
        return Features(held.get("summary"), held["spatial"])

    def _write(self, encoder: Encoder, name: str, features: Features, replace: bool) -> None:
        from safetensors.torch import save

        held = {part: tensor.contiguous() for part, tensor in features._asdict().items() if tensor is not None}
        path = self._path(encoder, name)
        if path.exists() and not replace:
            return  # another process was quicker, and has handed out its bits
        if not all(tensor.isfinite().all() for tensor in held.values()):
            return  # the run will stop over it, and must not find it again
        temporary = path.with_name(f".{path.stem}.{os.getpid()}{TEMPORARY}")
        try:
            if not self._has_room(sum(tensor.nbytes for tensor in held.values())):
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(save(held, {"crc32": checksum_of(held)}))
            os.replace(temporary, path)
        except OSError as error:  # a full disk must not end a run that goes on without the cache
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            self._close(f"cannot write ({error.strerror})")

    def _has_room(self, wanted: int) -> bool:
        self._allowance -= wanted
        if self._allowance < 0 and not self._closed:
            left = self.limit - wanted - _measure(self.folder)
            self._allowance = left // LOOKS
            if left < 0:
                self._close(f"its {self.limit / 2**30:.3g} GiB (cache.max_gib) are full")
        return not self._closed

    def _close(self, why: str) -> None:
        self._closed = True
        self.say(f"teacher cache {self.folder}: {why}; what is there is used, and nothing is added")


def checksum_of(held: dict[str, Tensor]) -> str:
    """Eight digits that change with any byte of the tensors; to be kept beside them."""
    crc = 0
    for part in sorted(held):
        crc = zlib.crc32(held[part].contiguous().view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def _shapes(held: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {part: tuple(tensor.shape) for part, tensor in held.items() if tensor.dtype == DTYPE}


def _wanted(encoder: Encoder, size: Size) -> dict[str, tuple[int, ...]]:
    wanted = {"spatial": (encoder.dims.spatial, *encoder.grid(size))}
    return wanted if encoder.dims.summary is None else wanted | {"summary": (encoder.dims.summary,)}


def _measure(folder: Path) -> int:
    """Bytes of all files under a folder; temporary files of processes that died are removed."""
    total = 0
    for home, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(home, name)
            try:
                facts = os.stat(path)
                if name.endswith(TEMPORARY) and time.time() - facts.st_mtime > STALE:
                    os.unlink(path)
                else:
                    total += facts.st_size
            except FileNotFoundError:  # renamed or removed by another process
                continue
    return total
