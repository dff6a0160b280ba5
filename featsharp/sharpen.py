"""Pictures → PNGs that show a teacher's map beside its sharpened one, in one set of colours.

`python -m featsharp.sharpen RUN PICTURES... --out DIR`
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from featsharp import adapter as adapters
from featsharp import sharpener
from featsharp.sharpener import Sharpener
from featsharp.tiles import shrink
from featsharp.upsamplers.base import enlarge
from teachers.errors import UserError
from teachers.features import Size

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
FITTED = 16  # pictures whose maps the colours are fitted on


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
        files = list(_files(arguments.pictures))
        sharp = _build(arguments)
        return sharpen_pictures(sharp, files, arguments.out)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


def _build(arguments: argparse.Namespace) -> Sharpener:
    from teachers import catalogue

    known = {}
    if arguments.adapter not in sharpener.UNTRAINED:
        known = adapters.read_config(sharpener.find(arguments.adapter))["teacher"]["built_from"] or {}
    name = arguments.teacher or known.get("encoder")
    if name is None:
        raise UserError(
            f"{arguments.adapter} does not say which teacher to build",
            todo="add --teacher NAME (and --weights where they are not the catalogue's)",
        )
    known = known if name == known.get("encoder") else {}
    weights, options = arguments.weights or known.get("weights"), known.get("options", {})
    encoder = catalogue.build(name, weights=weights, device=arguments.device, **options)
    return sharpener.build(arguments.adapter, encoder, device=arguments.device)


def _files(paths: Sequence[str]) -> Iterator[Path]:
    for path in map(Path, paths):
        if path.is_dir():
            yield from sorted(p for p in path.iterdir() if p.suffix.lower() in ENDINGS)
        elif path.is_file():
            yield path
        else:
            raise UserError(f"no picture at {path}", expected="picture files, or folders of them")


def sharpen_pictures(sharp: Sharpener, files: Sequence[Path], out: Path) -> int:
    """Write a PNG a picture into `out`; the exit code: 0, or 1 where no picture could be read."""
    from teachers.pictures import PcaBasis, panel

    seen = _look(sharp, files)
    first = list(itertools.islice(seen, FITTED))
    if first:
        basis = PcaBasis.fit([features for _, _, maps in first for features in maps.values()])
        out.mkdir(parents=True, exist_ok=True)
    written = 0
    for file, image, maps in itertools.chain(first, seen):
        pictures = [(title, basis.to_rgb(features)) for title, features in maps.items()]
        panel([[(file.name, image), *pictures]], cell=320).save(out / f"{file.stem}.png")
        written += 1
    print(f"{written} of {len(files)} pictures: {out}")
    return 0 if written else 1


def _look(sharp: Sharpener, files: Sequence[Path]) -> Iterator[tuple[Path, Tensor, dict[str, Tensor]]]:
    """Each picture that can be read, and its maps D×h×w on the CPU: the teacher's, the same enlarged, the sharpened."""
    device = next(sharp.parameters()).device
    for file in files:
        try:
            image = read_picture(file, sharp.native_size)[None].to(device)
        except OSError as error:
            print(f"{file}: left out, it cannot be read ({error})", file=sys.stderr)
            continue
        low = sharp.encoder(shrink(image, sharp.encoder.native_size)).spatial
        maps = {
            sharp.encoder.name: low,
            f"bilinear {sharp.factor}x": enlarge(low, sharp.factor),
            f"{sharp.config.upsampler} {sharp.factor}x": sharp(image).spatial,
        }
        yield file, image[0], {title: features[0].detach().cpu() for title, features in maps.items()}


def read_picture(file: Path, size: Size) -> Tensor:
    """The middle of a picture at `size`: 3×H×W in [0, 1]."""
    import numpy as np
    from PIL import Image, ImageOps

    with Image.open(file) as opened:
        picture = ImageOps.fit(ImageOps.exif_transpose(opened).convert("RGB"), size[::-1], Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


if __name__ == "__main__":
    sys.exit(main())
