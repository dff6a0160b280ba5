"""Turns `python -m radio_distill.shards pack|look ...` into calls, and their results into a few lines for people."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from teachers.errors import UserError

EXAMPLES = """\
examples:
  python -m radio_distill.shards pack photos data/photos --holdout 100
  python -m radio_distill.shards pack coco/train2017 data/coco --captions coco/annotations/captions_train2017.json
  python -m radio_distill.shards pack imagenet/train data/imagenet --max-side 512 --workers 8
  python -m radio_distill.shards look "data/photos/train-*.tar" --sheet sheet.png
"""
PACK = """\
Pictures (.jpg, .png, .webp, ...) in FOLDER and in the folders below it become samples of WebDataset shards:
the file byte for byte (unless --max-side shrinks it), as .txt its caption (--captions, or FILE.txt beside it),
as .cls the number of its class folder (FOLDER/<class>/picture.jpg), and as .json its name, size and captions.
They are shuffled; pictures that cannot be decoded are left out and listed.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, or 2 with one message where nothing could be done."""
    options = _parser().parse_args(arguments)
    warnings.simplefilter("ignore")  # Pillow's, of odd metadata
    try:
        return options.run(options)
    except UserError as error:
        print(error, file=sys.stderr)
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"{options.command}: {error}; nothing was left half written", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    style = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(
        "python -m radio_distill.shards", description="Make and inspect the tar shards that training streams.",
        epilog=EXAMPLES, **style,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True)
    pack = commands.add_parser("pack", help="pictures → tar shards", description=PACK, epilog=EXAMPLES, **style)
    pack.add_argument("folder", help="of pictures")
    pack.add_argument("out", help="folder for the shards")
    pack.add_argument("--per-shard", type=_positive, default=1000, metavar="N", help="pictures a shard (default 1000)")
    pack.add_argument("--captions", metavar="FILE", help="COCO captions json, {picture: caption} json, or csv")
    pack.add_argument("--holdout", type=int, default=0, metavar="N", help="put N pictures into heldout-*.tar instead")
    pack.add_argument("--max-side", type=_positive, metavar="PX", help="shrink pictures with a longer side")
    pack.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 8), help="threads that decode")
    pack.add_argument("--seed", type=int, default=0, help="of the shuffle and of the choice held out")
    pack.add_argument("--force", action="store_true", help="replace the shards that OUT already holds")
    pack.set_defaults(run=_pack)
    look = commands.add_parser("look", help="what shards hold", epilog=EXAMPLES, **style)
    look.add_argument("shards", nargs="+", help="as in a recipe: paths, globs, brace ranges, s3:// or pipe: addresses")
    look.add_argument("--limit", type=_positive, metavar="N", help="stop after N pictures")
    look.add_argument("--sheet", metavar="PNG", help="write a contact sheet of the first 40")
    look.set_defaults(run=_look)
    return parser


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _pack(options: argparse.Namespace) -> int:
    from radio_distill.look import counted
    from radio_distill.pack import brace, pack

    made = pack(
        options.folder, options.out, per_shard=options.per_shard, captions=options.captions, holdout=options.holdout,
        max_side=options.max_side, workers=options.workers, seed=options.seed, force=options.force,
    )  # fmt: skip
    size = sum(path.stat().st_size for path in made.train) / 1e6
    print(f"{counted(made.pictures, 'picture')} in {counted(len(made.train), 'shard')}, {size:.1f} MB")
    for name, reason in list(made.left_out.items())[:10]:
        print(f"  left out: {name} {reason}")
    if len(made.left_out) > 10:
        print(f"  left out: {len(made.left_out) - 10} more")
    print(f'in a recipe:  shards: "{brace(made.train)}"')
    if made.heldout:
        print(f'held out:     shards: "{brace(made.heldout)}"   ({options.holdout} pictures)')
    return 0


def _look(options: argparse.Namespace) -> int:
    from radio_distill.look import look, sheet

    seen = look(options.shards, options.limit, thumbnails=40 if options.sheet else 0)
    print("\n".join(seen.lines()))
    if options.sheet and seen.thumbnails:
        sheet(seen.thumbnails, Path(options.sheet))
        print(f"contact sheet: {options.sheet}")
    return 0 if seen.sides else 2
