"""Command line of the tabletop: `shards` renders training data, `layouts` a data root for the full benchmark's recipe,
`teachers` trains the two tiny towers, `show` draws scenes."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from teachers.errors import UserError


def _shards(args: argparse.Namespace) -> None:
    from eval.tabletop.shards import write

    paths = write(
        args.out, args.scenes, args.seed, size=args.size, split=args.split, per_shard=args.per_shard,
        picture_format=args.format, workers=args.workers,
    )  # fmt: skip
    megabytes = sum(path.stat().st_size for path in paths) / 1e6
    print(f"{args.scenes} scenes of {args.size}×{args.size} in {len(paths)} shards, {megabytes:.1f} MB:")
    print(f"  {args.out}/{args.split}-{{00000..{len(paths) - 1:05d}}}.tar")


def _layouts(args: argparse.Namespace) -> None:
    from eval.tabletop.layouts import LAYOUTS, write

    made = write(args.out, args.scenes, args.seed, args.workers)
    files = [file for file in args.out.rglob("*") if file.is_file()]
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    print(f"{args.out}{'' if made else ' is there already'}: {len(files)} files, {megabytes:.0f} MB")
    for name, layout in LAYOUTS.items():
        print(f"  {name:15} {layout.FOLDER}/")
    print(f"next:\n  python -m eval recipes/eval/full.yaml MODEL... --baseline NAME --data-root {args.out}")


def _teachers(args: argparse.Namespace) -> None:
    from eval.tabletop.towers import CONFIGS
    from eval.tabletop.training import make

    names = [f"tabletop_{args.only}"] if args.only else list(CONFIGS)
    scores = make(
        args.out, names, scenes=args.scenes, steps=args.steps, batch=args.batch, lr=args.lr, seed=args.seed,
        held_out=args.held_out, workers=args.workers, keep_in=args.keep_in,
    )  # fmt: skip
    for name, values in scores.items():
        print(f"{name}: {args.out / name}\n{json.dumps(values, indent=1)}")


def _show(args: argparse.Namespace) -> None:
    from eval.tabletop.sheet import sheet

    sheet(args.seed, args.split, args.scenes, args.size).save(args.out)
    print(f"{args.scenes} scenes with their labels: {args.out}")


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def _command(commands, name: str, run, help: str, example: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name, help=help, description=help, epilog=f"example:\n  {example}",
        formatter_class=_Help,
    )  # fmt: skip
    command.set_defaults(run=run)
    command.add_argument("--seed", type=int, default=0, help="of the scenes (and of the training)")
    return command


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("expected 1 or more")
    return value


def parser() -> argparse.ArgumentParser:
    cores = os.cpu_count() or 1
    parser = argparse.ArgumentParser(prog="python -m eval.tabletop", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    workers = {"type": int, "default": cores, "help": "rendering processes; 0: render in this one"}

    shards = _command(
        commands, "shards", _shards, "Render scenes into WebDataset tars: picture, caption, labels.",
        "python -m eval.tabletop shards data/tabletop --scenes 8000 --seed 1",
    )  # fmt: skip
    shards.add_argument("out", type=Path, help="folder for the tars")
    shards.add_argument("--scenes", type=_positive, required=True, help="how many")
    shards.add_argument("--size", type=_positive, default=128, help="side of the pictures in pixels")
    shards.add_argument("--split", default="train", help="its name keeps its scenes apart from every other split's")
    shards.add_argument("--per-shard", type=_positive, default=250, help="scenes a tar")
    shards.add_argument("--format", choices=("jpg", "png"), default="jpg", help="of the pictures (jpg: quality 95)")
    shards.add_argument("--workers", **workers)

    layouts = _command(
        commands, "layouts", _layouts,
        "Render stand-ins for every data set of recipes/eval/full.yaml, in their published layouts: the whole "
        "benchmark can then be rehearsed without the data. No figure of a rehearsal says anything about a model.",
        "python -m eval.tabletop layouts data/rehearsal\n"
        "  python -m eval recipes/eval/full.yaml teacher:tabletop_clip runs/a --data-root data/rehearsal",
    )  # fmt: skip
    layouts.add_argument("out", type=Path, help="folder to write; must not exist, or be empty")
    about = "pictures of a part of a data set, about; 4 or more"
    layouts.add_argument("--scenes", type=_positive, default=6, help=about)
    layouts.add_argument("--workers", **workers)

    teachers = _command(
        commands, "teachers", _teachers, "Train and measure the two tiny towers, a CLIP and a SigLIP.",
        "python -m eval.tabletop teachers --out /tmp/towers --only clip",
    )  # fmt: skip
    teachers.add_argument("--out", type=Path, default=Path("teachers/weights"), help="where a folder a tower goes")
    teachers.add_argument("--only", choices=("clip", "siglip"), help="train one of them (default: both)")
    teachers.add_argument("--scenes", type=_positive, default=16000, help="training scenes")
    teachers.add_argument("--steps", type=_positive, default=1500, help="optimiser steps")
    teachers.add_argument("--batch", type=_positive, default=128, help="scenes a step")
    teachers.add_argument("--lr", type=float, default=1.5e-3, help="peak learning rate")
    teachers.add_argument("--held-out", type=_positive, default=2000, help="scenes that the scores are measured on")
    teachers.add_argument("--keep-in", type=Path, help="folder where rendered scenes are kept for the next time")
    teachers.add_argument("--workers", **workers)

    show = _command(
        commands, "show", _show, "Draw a contact sheet: scenes with every label beside them.",
        "python -m eval.tabletop show sheet.png --scenes 8",
    )  # fmt: skip
    show.add_argument("out", type=Path, help="the picture to write")
    show.add_argument("--scenes", type=_positive, default=6, help="how many")
    show.add_argument("--size", type=_positive, default=128, help="side of the pictures in pixels")
    show.add_argument("--split", default="train", help="which split")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        args.run(args)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
