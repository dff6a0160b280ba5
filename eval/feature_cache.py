"""Turns (encoder, split, size) into features on disk, extracted once and shared by every task.

A *part* is one output: `backbone.summary`, `clip.spatial`, ... The folder is
`<encoder identity>/<split identity>-v<version>-<H>x<W>-<fit>-<dtype>/<part>/00000.safetensors`, a file a chunk of
pictures, each written to a temporary name and renamed, so a killed run loses at most one chunk. Files that do not hold
what their checksum says are made again.

Shapes: N pictures; a summary part is N×D, a spatial part N×D×h×w, fp32 when read.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from eval.datasets.split import Split
from eval.encoders import device_of, everything
from radio_distill.console import duration
from radio_distill.engine import choose_precision
from radio_distill.teacher_cache import checksum_of
from radio_distill.views import centre_crop, resize
from teachers.errors import UserError
from teachers.features import Encoder, Size

CHUNK = 256  # pictures a file
IN_MEMORY = 2 << 30  # bytes of one part up to which it is read as a whole
ABANDONED = 24 * 3600  # seconds after which an unfinished file is nobody's
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SUMMARY, SPATIAL = "summary", "spatial"
PICTURES = 1  # version: raise it where the same file comes to give other pixels (`read_image`, `View.image`)
MEAN_COLOUR = (124, 116, 104)  # ImageNet's: what most encoders' normalisation, and SAM's, takes for zero


@dataclass(frozen=True)
class View:
    """Which pictures, and how they are brought to the size that an encoder takes."""

    split: Split
    size: Size
    fit: str  # crop: the largest centred box of the size's aspect; stretch: the whole picture; pad: whole, undistorted

    @property
    def key(self) -> str:
        """Names the features of these pictures; their truths are no part of it, unless they decide what is seen."""
        # Where the aspect is the pictures' own, all fits are one.
        same = self.split.shape and self.split.shape[0] * self.size[1] == self.split.shape[1] * self.size[0]
        seen = f"{self.split.identity}-{self.split.truth_identity}" if self.split.truths_crop else self.split.identity
        return f"{seen}-v{PICTURES}-{self.size[0]}x{self.size[1]}-{'stretch' if same else self.fit}"

    def image(self, index: int) -> Tensor:
        """Picture `index`, uint8 3×size."""
        picture = self.split.image(index)
        if self.fit == "crop":
            box = centre_crop(tuple(picture.shape[1:]), self.size[1] / self.size[0])
            picture = picture[:, box.top : box.top + box.height, box.left : box.left + box.width]
        if self.fit == "pad":
            return padded(picture, self.size)
        return resize(picture, self.size)


def padded(picture: Tensor, size: Size) -> Tensor:
    """uint8 3×H×W → 3×size: as large as fits with its aspect kept, in the top left corner, on the mean colour."""
    inside = placed(tuple(picture.shape[1:]), size)
    frame = torch.tensor(MEAN_COLOUR, dtype=torch.uint8)[:, None, None].repeat(1, *size)
    frame[:, : inside[0], : inside[1]] = resize(picture, inside)
    return frame


def placed(picture: Size, size: Size) -> Size:
    """Height and width of a picture inside a padded frame of `size`, rounded as SAM's own transform does."""
    scale = min(size[0] / picture[0], size[1] / picture[1])
    return tuple(max(int(side * scale + 0.5), 1) for side in picture)


class Stored:
    """One part of all pictures of a view, read as fp32; small ones stay in memory, large ones on disk."""

    def __init__(self, files: Sequence[Path], count: int):
        self._files, self._count = files, count
        small = sum(file.stat().st_size for file in files) <= IN_MEMORY
        self._memory = torch.cat([_load(file) for file in files]) if small else None

    def __len__(self) -> int:
        return self._count

    @property
    def width(self) -> int:
        """D."""
        return self[torch.tensor([0])].shape[1]

    def all(self) -> Tensor:
        """Everything at once, N×...; for summaries."""
        return (torch.cat([_load(file) for file in self._files]) if self._memory is None else self._memory).float()

    def chunks(self) -> Iterator[Tensor]:
        """The pictures in order, some at a time; for maps."""
        if self._memory is not None:
            yield from (chunk.float() for chunk in self._memory.split(CHUNK))
            return
        yield from (_load(file).float() for file in self._files)

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Any pictures, in any order."""
        if self._memory is not None:
            return self._memory[indices].float()
        from safetensors import safe_open

        rows = []
        for index in indices.tolist():
            with safe_open(self._files[index // CHUNK], framework="pt") as opened:  # maps the file; reads one picture
                rows.append(opened.get_slice("x")[index % CHUNK])
        return torch.stack(rows).float()


def computes_in_bf16(device: torch.device) -> bool:
    """Whether a device has bf16 arithmetic: a CPU without it emulates it, nine times slower than fp32."""
    return choose_precision("auto", device)[0] == "bf16"


class FeatureCache:
    """Extracts what is missing and reads what is there.

    Args:
        folder: may be shared by runs and deleted at any time.
        dtype: fp32 or bf16, of the files (and of the forward pass where the device has bf16).
        batch: pictures a forward pass.
        say: where progress lines go.
    """

    def __init__(self, folder: Path, dtype: str = "fp32", batch: int = 64, say=print):
        self.folder, self.dtype, self.batch, self.say = folder, dtype, batch, say
        self._wanted: dict[tuple[str, str], set[str]] = {}
        self._sound: set[Path] = set()  # files whose checksum was seen to be right

    def want(self, encoder: Encoder, view: View, parts: Iterable[str]) -> None:
        """Announce parts, so that the first `get` extracts all of them in one forward pass."""
        self._wanted.setdefault((encoder.identity, view.key), set()).update(parts)

    def get(self, encoder: Encoder, view: View, part: str) -> Stored:
        """One part of every picture of `view`; `UserError` for a size, a picture or features that are no good."""
        self.want(encoder, view, [part])
        parts = sorted(self._wanted[encoder.identity, view.key])
        home = self.folder / encoder.identity / f"{view.key}-{self.dtype}"
        starts = range(0, view.split.count, CHUNK)
        absent = {}
        for number, start in enumerate(starts):
            rows = min(CHUNK, view.split.count - start)
            names = [name for name in parts if not self._is_sound(home / name / f"{number:05d}.safetensors", rows)]
            if names:
                absent[number] = names
        if any(part in names for names in absent.values()):
            self._extract(encoder, view, home, absent, part)
        return Stored([home / part / f"{number:05d}.safetensors" for number in range(len(starts))], view.split.count)

    def _is_sound(self, file: Path, rows: int) -> bool:
        if file in self._sound:
            return True
        if not file.exists():
            return False
        try:
            sound = checksum_of({"x": (tensor := _load(file))}) == _recorded(file) and len(tensor) == rows
        except Exception:  # safetensors raises its own kinds for files cut short or overwritten
            sound = False
        if sound:
            self._sound.add(file)
        else:
            self.say(f"cache: {file} is damaged; it is made again")
        return sound

    def _extract(self, encoder: Encoder, view: View, home: Path, absent: dict[int, list[str]], wanted: str) -> None:
        """Write what is absent; what is wrong with a part other than `wanted` is for those to hear who ask for it."""
        spoilt: set[str] = set()
        begun, done = time.monotonic(), 0
        total = sum(min(CHUNK, view.split.count - number * CHUNK) for number in absent)
        title = f"features  {encoder.name}  {view.split} at {view.size[0]}×{view.size[1]}"
        for number, names in absent.items():
            names = [name for name in names if name not in spoilt]
            rows: dict[str, list[Tensor]] = {name: [] for name in names}
            last = min((number + 1) * CHUNK, view.split.count)
            for start in range(number * CHUNK, last, self.batch):
                indices = range(start, min(start + self.batch, last))
                outputs = self._forward(encoder, torch.stack([view.image(index) for index in indices]))
                for name in list(names):
                    try:
                        rows[name].append(self._checked(outputs, name, encoder, view, start))
                    except UserError:
                        if name == wanted:
                            raise
                        spoilt.add(name)
                        names.remove(name)
                done += len(indices)
                spent = time.monotonic() - begun
                if done < total and spent > 5 and start % (4 * self.batch) == 0:
                    self.say(f"{title}  {done}/{total}  eta {duration(spent / done * (total - done))}")
            for name in names:
                self._save(home / name / f"{number:05d}.safetensors", torch.cat(rows[name]))
        self.say(f"{title}  {total} pictures in {time.monotonic() - begun:.1f} s")

    def _forward(self, encoder: Encoder, pictures: Tensor) -> dict[str, Tensor | None]:
        device = device_of(encoder)
        images = pictures.to(device).float().div_(255)
        half = self.dtype == "bf16" and computes_in_bf16(device)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=half):
            answers = everything(encoder, images)
        outputs: dict[str, Tensor | None] = {}
        for head, features in answers.items():
            outputs[f"{head}.{SUMMARY}"], outputs[f"{head}.{SPATIAL}"] = features
        return outputs

    def _checked(
        self, outputs: dict[str, Tensor | None], name: str, encoder: Encoder, view: View, start: int
    ) -> Tensor:
        if outputs.get(name) is None:
            has = ", ".join(key for key, value in outputs.items() if value is not None)
            raise UserError(f"{encoder.name} has no {name}", expected=f"it has {has}")
        bad = ~outputs[name].flatten(1).isfinite().all(dim=1)
        if bad.any():
            first = start + int(bad.nonzero()[0])
            raise UserError(
                f"{encoder.name}: {name} of picture {first} of {view.split} holds NaN or infinity",
                expected="finite features of every picture",
                todo="look at the model's weights" + ("" if self.dtype == "fp32" else "; --set precision=fp32 may do"),
            )
        return outputs[name].to("cpu", DTYPES[self.dtype])

    def _save(self, file: Path, tensor: Tensor) -> None:
        from safetensors.torch import save_file

        file.parent.mkdir(parents=True, exist_ok=True)
        for left in file.parent.glob(".*.tmp"):  # by a process that was killed; a younger one may still be writing
            with contextlib.suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > ABANDONED:
                    left.unlink()
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        save_file({"x": tensor.contiguous()}, temporary, metadata={"crc32": checksum_of({"x": tensor})})
        os.replace(temporary, file)
        self._sound.add(file)


def _load(file: Path) -> Tensor:
    from safetensors.torch import load_file

    return load_file(file)["x"]


def _recorded(file: Path) -> str:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return (opened.metadata() or {}).get("crc32", "")
