"""Pictures → PNGs that show a teacher's map beside its sharpened one, in one set of colours.

`python -m featsharp.sharpen ADAPTER PICTURES... --out DIR`
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from featsharp import sharpener
from featsharp.reading import files as picture_files
from featsharp.reading import fitted
from featsharp.sharpener import Sharpener
from featsharp.tiles import shrink
from featsharp.upsamplers.base import enlarge
from teachers.errors import UserError

FITTED = 16  # pictures whose maps the colours are fitted on
MADE_BY = "radio-distill: featsharp.sharpen"  # said in each PNG, so that it may be replaced


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m featsharp.sharpen", description=__doc__.splitlines()[0])
    parser.add_argument("adapter", help="run folder of a trained sharpener, its export, or bilinear or tile")
    parser.add_argument("pictures", nargs="+", help="picture files, or folders of them")
    parser.add_argument("--out", required=True, type=Path, help="folder for the PNGs")
    parser.add_argument("--teacher", help="a name of the catalogue (python -m teachers); default: the adapter's own")
    parser.add_argument("--weights", help="weights of the teacher; default: those it was trained for")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args(argv)
    try:
        files = picture_files(arguments.pictures)
        encoder = sharpener.build_teacher(arguments.adapter, arguments.teacher, arguments.weights, arguments.device)
        sharp = sharpener.build(arguments.adapter, encoder, device=arguments.device)
        return sharpen_pictures(sharp, files, arguments.out)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


def sharpen_pictures(sharp: Sharpener, files: Sequence[Path], out: Path) -> int:
    """Write a PNG a picture into `out`; the exit code: 0, or 1 where no picture could be read.

    Raises `UserError` where that would replace a file that is not of ours.
    """
    from PIL.PngImagePlugin import PngInfo

    from teachers.pictures import PcaBasis, panel

    places = names(files, out)
    check_ours(places)
    about = PngInfo()
    about.add_text("Software", MADE_BY)
    seen = _look(sharp, files)
    first = list(itertools.islice(seen, FITTED))
    if first:
        basis = PcaBasis.fit([features for _, _, maps in first for features in maps.values()])
        out.mkdir(parents=True, exist_ok=True)
    written = 0
    for file, image, maps in itertools.chain(first, seen):
        pictures = [(title, basis.to_rgb(features)) for title, features in maps.items()]
        panel([[(file.name, image), *pictures]], cell=320).save(places[file], pnginfo=about)
        written += 1
    print(f"{written} of {len(files)} pictures: {out}")
    return 0 if written else 1


def names(files: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Pictures → a PNG each in `out`, named as the picture; with its suffix, then its folders, where two would meet."""
    chosen: dict[Path, str] = {}
    for file in files:
        parts = file.parts[:-1]
        longer = ("_".join([*parts[-n:], file.name]).replace("/", "_") for n in range(1, len(parts) + 1))
        taken = set(chosen.values())
        numbered = (f"{number}_{file.name}" for number in itertools.count(2))
        chosen[file] = next(
            name for name in itertools.chain([file.stem, file.name], longer, numbered) if name not in taken
        )
    return {file: out / f"{name}.png" for file, name in chosen.items()}


def check_ours(places: Mapping[Path, Path]) -> None:
    """Raise `UserError` where a PNG would replace a picture that is read, or a file that we have not written."""
    read = {file.resolve() for file in places}
    for place in places.values():
        if place.resolve() in read or place.exists() and not _made_here(place):
            raise UserError(
                f"{place} is there already, and this command has not made it: nothing was written",
                expected="a folder for the PNGs with no other files of these names",
                todo="name another folder with --out",
            )


def _made_here(file: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(file, formats=["PNG"]) as opened:
            return opened.info.get("Software") == MADE_BY
    except OSError:
        return False


def _look(sharp: Sharpener, files: Sequence[Path]) -> Iterator[tuple[Path, Tensor, dict[str, Tensor]]]:
    """Each picture that can be read, and its maps D×h×w on the CPU: the teacher's, the same enlarged, the sharpened."""
    from PIL import Image

    device = next(sharp.parameters()).device
    for file in files:
        try:
            with Image.open(file) as opened:
                image = fitted(opened, sharp.native_size)[None].to(device).float() / 255
        except OSError as error:
            print(f"{file}: left out, it cannot be read ({error})", file=sys.stderr)
            continue
        low = sharp.encoder(shrink(image, sharp.encoder.native_size)).spatial
        maps = {
            sharp.encoder.name: low,
            f"bilinear {sharp.factor}x": enlarge(low, sharp.factor),
            f"{sharp.config.upsampler} {sharp.factor}x": sharp(image).spatial,
        }
        maps = {title: features.detach().cpu() for title, features in maps.items()}
        for features in maps.values():
            sharpener.check_finite(features, f"{file}: {sharp.name}")
        yield file, image[0], {title: features[0] for title, features in maps.items()}
