"""Turns shard patterns into addresses, and a tar shard into items: encoded pictures, and what is wrong with others."""

from __future__ import annotations

import contextlib
import glob
import lzma
import os
import re
import select
import shlex
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from teachers.errors import UserError

# Members that are pictures, the best first: where a sample has several, the first in this row is taken.
PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "jp2", "avif")

HOW_TO_MAKE = (
    "python -m radio_distill.shards pack FOLDER OUT   (your own pictures)\n"
    "        or python -m eval.tabletop shards OUT --scenes 2000 --seed 0   (rendered scenes)"
)
PATIENCE = 1.0  # seconds that a pipe's program may take to end after its tar
_ADDRESS = re.compile(r"^(pipe:|file:|[a-z][a-z0-9]*://)")
_PROGRAMS = {"s3": "aws", "gs": "gsutil", "http": "curl", "https": "curl"}  # what webdataset and we read them with
_FAULTS = (OSError, EOFError, ValueError, tarfile.TarError, zlib.error, lzma.LZMAError)


class Item(NamedTuple):
    """A sample of a shard, or something wrong there; `index` counts both, so it says where to read on."""

    shard: str
    index: int
    key: str  # the sample's, or "" for a fault of the shard itself
    picture: bytes | None  # the encoded file
    problem: str | None  # why there is no picture


def resolve(shards: str | Sequence[str], where: str) -> list[str]:
    """Paths, globs, brace ranges and addresses (s3://, gs://, http(s)://, pipe:) → every shard they name, in order.

    `where` is the recipe key that an error names. Local shards must exist; of others only the program that reads them.
    """
    patterns = [shards] if isinstance(shards, str) else list(shards)
    if not patterns:
        raise UserError(f"{where}: the list of shards is empty", todo=HOW_TO_MAKE)
    return [shard for pattern in patterns for shard in _expand(pattern, where)]


def _expand(pattern: str, where: str) -> list[str]:
    from braceexpand import UnbalancedBracesError, braceexpand

    try:
        names = list(braceexpand(pattern))
    except UnbalancedBracesError:
        text = f"{where}: unbalanced braces in '{pattern}'"
        raise UserError(text, expected="like train-{000000..000012}.tar") from None
    if not _ADDRESS.match(pattern):
        return _local(pattern, [os.path.expanduser(name) for name in names], where)
    if not pattern.startswith("pipe:"):
        _check_remote(pattern, where)
    return names


def _check_remote(pattern: str, where: str) -> None:
    from webdataset.gopen import gopen_schemes

    scheme, known = pattern.split(":")[0], {*_PROGRAMS, *gopen_schemes, "file"} - {"__default__"}
    if scheme not in known:
        raise UserError(f"{where}: cannot read {scheme}://", expected=", ".join(sorted(known)))
    if glob.has_magic(pattern):
        raise UserError(
            f"{where}: a remote folder cannot be listed: '{pattern}'",
            expected="a brace range, like s3://bucket/train-{000000..000999}.tar",
        )
    program = _PROGRAMS.get(scheme)
    if program and not shutil.which(program):
        raise UserError(f"{where}: reading {scheme}:// needs the program '{program}'", todo=f"install {program}")


def _local(pattern: str, names: list[str], where: str) -> list[str]:
    found, missing = [], []
    for name in names:
        matches = [name] if os.path.isfile(name) else sorted(glob.glob(name, recursive=True))
        files = [match for match in matches if os.path.isfile(match)]
        found += files
        missing += [] if files else [name]
    if missing:
        raise _missing(pattern, missing, len(names), where)
    return found


def _missing(pattern: str, missing: list[str], total: int, where: str) -> UserError:
    first = missing[0]
    if os.path.isdir(first):
        return UserError(f"{where}: '{first}' is a folder", todo=f'shards: "{first.rstrip("/")}/*.tar"')
    folder = Path(first).absolute().parent
    while not folder.is_dir():
        folder = folder.parent
    tars = sorted(path.name for path in folder.glob("*.tar"))
    holds = f"{len(tars) or 'no'} tar files" + (f" ({', '.join(tars[:3])}{', ...' * (len(tars) > 3)})" if tars else "")
    if glob.has_magic(first):
        what = f"{where}: no file matches '{first}'"
    elif total > 1:
        what = f"{where}: {len(missing)} of the {total} shards of '{pattern}' are missing; the first is {first}"
    else:
        what = f"{where}: there is no shard '{first}'"
    todo = f'shards: "{folder}/*.tar"   (those)\n        or {HOW_TO_MAKE}' if tars else HOW_TO_MAKE
    return UserError(what, expected=f"tar files; the nearest folder, {folder}, holds {holds}", todo=todo)


def read(shard: str, start: int = 0, part: int = 0, parts: int = 1) -> Iterator[Item]:
    """The items of a shard whose index is ≥ `start` and ≡ `part` modulo `parts`.

    Whatever is wrong is an item too, never an exception: a sample without a picture, a tar that is cut short (after
    what precedes), one that is junk, empty or gone.
    """
    index, group = 0, None

    def wanted() -> bool:
        return index >= start and index % parts == part

    try:
        with contextlib.closing(_open(shard)) as file, _tar(file) as tar:
            holds_any = tar.firstmember is not None
            while holds_any and (member := _next(tar)) is not None:
                tar.members = []  # TarFile would keep the header of every member of a large shard
                key, suffix = _split(member)
                if key is None:
                    continue
                if group and (key != group.key or suffix in group.suffixes):
                    if wanted():
                        yield group.item(shard, index)
                    index, group = index + 1, None
                group = group or _Group(key)
                if group.prefers(suffix) and wanted():
                    group.picture = tar.extractfile(member).read()
                group.suffixes.append(suffix)
            fault = _rest(tar, file) or (None if group or index else "holds no samples")
    except _FAULTS as error:
        fault = _reason(error)
    if group:
        # Where the shard broke off inside a sample, that sample counts only if its picture was read whole.
        if wanted() and (group.picture is not None or fault is None):
            yield group.item(shard, index)
        index += 1
    if fault and wanted():
        yield Item(shard, index, "", None, fault)


class _Group:
    """The members of one sample, as they come by."""

    def __init__(self, key: str):
        self.key, self.suffixes, self.picture = key, [], None

    def prefers(self, suffix: str) -> bool:
        if suffix not in PICTURES:
            return False
        return all(PICTURES.index(suffix) < PICTURES.index(other) for other in self.suffixes if other in PICTURES)

    def item(self, shard: str, index: int) -> Item:
        if self.picture is not None:
            return Item(shard, index, self.key, self.picture, None)
        return Item(shard, index, self.key, None, f"no picture among its members ({', '.join(self.suffixes)})")


class _Header(tarfile.TarInfo):
    """Says aloud what tarfile takes for the end of an archive: a header that is cut short or overwritten."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # the proper end: blocks of zeros
            tar.zeros = getattr(tar, "zeros", 0) + tarfile.BLOCKSIZE
            raise
        except tarfile.EmptyHeaderError:  # the end of the file
            if not tar.ignore_zeros:
                raise tarfile.ReadError(f"empty header at byte {tar.offset}") from None
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {tar.offset}") from None


def _tar(file: IO[bytes]) -> tarfile.TarFile:
    # A file that can seek skips what is not wanted without reading it; a pipe cannot. In a file, what follows blocks of
    # zeros is read: another tar behind the first, or what a lost page has left. A pipe's end is not waited for.
    seekable = getattr(file, "seekable", lambda: False)()
    mode = "r:*" if seekable else "r|*"
    try:
        return tarfile.open(fileobj=file, mode=mode, tarinfo=_Header, ignore_zeros=seekable)
    except tarfile.ReadError:
        raise tarfile.ReadError("is not a tar archive") from None


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next member; `ReadError` where zeros stand that mark no end: a lost page, which tarfile takes for one.

    A tar ends with two blocks of zeros, filled up with more to a whole record; another may begin behind it.
    """
    member = tar.next()
    if not tar.ignore_zeros:
        return member
    zeros, tar.zeros = getattr(tar, "zeros", 0), 0  # bytes passed over, counted as headers are read
    end = tar.offset if member is None else member.offset
    whole = zeros >= 2 * tarfile.BLOCKSIZE and end % tarfile.RECORDSIZE == 0
    if member is None and zeros < 2 * tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"empty header at byte {end - zeros}")
    if member is None and zeros > tarfile.RECORDSIZE + 2 * tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"it ends at byte {end - zeros} of {end}, only zeros follow")
    if member is not None and zeros and not whole:
        raise tarfile.ReadError(f"only zeros from byte {end - zeros} to {end}, where a member should be")
    return member


def _rest(tar: tarfile.TarFile, file: IO[bytes] | _Pipe) -> str | None:
    """What is wrong behind the end of a tar that came through a pipe: only zeros may follow. A file has been read."""
    place = tar.offset
    while isinstance(file, _Pipe) and file.ready():
        block = tar.fileobj.read(tarfile.BLOCKSIZE)
        if block.strip(b"\0"):
            return f"broke off: its end is marked at byte {place}, and data follow"
        if not block:
            break
    return None


class _Pipe:
    """A webdataset pipe that ends with its reader, who may stop early: closing it waits for no program."""

    def __init__(self, pipe: Any):
        self.pipe = pipe

    def read(self, size: int) -> bytes:
        """What has come, at most `size` bytes: to wait for all of them could mean to wait past the archive's end."""
        data = os.read(self.pipe.stream.fileno(), size)
        self.pipe.check_status()
        return data

    def ready(self) -> bool:
        """Whether more has come, or the end, within `PATIENCE`: a program may go on doing other things."""
        return bool(select.select([self.pipe.stream.fileno()], [], [], PATIENCE)[0])

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.pipe.proc.terminate()
            self.pipe.ignore_errors = True
            self.pipe.close()


def _open(shard: str) -> IO[bytes] | _Pipe:
    if not _ADDRESS.match(shard):
        return open(shard, "rb")
    from webdataset.gopen import gopen, gopen_schemes

    if shard.startswith("s3://") and "s3" not in gopen_schemes:  # webdataset itself knows s3 only through AIStore
        shard = f"pipe:aws s3 cp --only-show-errors {shlex.quote(shard)} -"
    file = gopen(shard, "rb")
    return _Pipe(file) if hasattr(file, "proc") else file


def _split(member: tarfile.TarInfo) -> tuple[str | None, str]:
    """Name of a member → key, suffix as webdataset splits them (at the first dot); None for what is not data."""
    from webdataset.tariterators import base_plus_ext

    if not member.isreg() or re.match(r"__[^/]*__($|/)", member.name):
        return None, ""
    key, suffix = base_plus_ext(member.name)
    return key, (suffix or "").lower()


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "is gone"
    text = " ".join(str(error).split())
    return text if text.startswith("is ") else f"broke off: {text or type(error).__name__}"
