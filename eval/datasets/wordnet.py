"""WordNet codes (`n01440764`), which ImageNet's class folders are called by → names in words (`tench`).

Names go by the code, not by the place in a list, so a part of ImageNet is named as rightly as the whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

CODE = re.compile(r"n\d{8}")


def is_code(name: str) -> bool:
    """Whether a class is called by a WordNet code: n and eight digits."""
    return CODE.fullmatch(name) is not None


@cache
def imagenet_names() -> dict[str, str]:
    """The 1000 codes of ImageNet-1k, sorted → the names that CLIP's evaluation asks by (open_clip ships them).

    Two pairs of classes share a name there: `missile` and `sunglasses`.
    """
    from open_clip import IMAGENET_CLASSNAMES
    from timm.data import ImageNetInfo

    return dict(zip(sorted(ImageNetInfo("imagenet-1k").label_names()), IMAGENET_CLASSNAMES))


@cache
def _lemmas() -> dict[str, str]:
    """The codes of the whole of ImageNet (22 k) → the first word that WordNet has for each, as timm ships them."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-22k")
    return {code: info.label_name_to_description(code).split(",")[0].strip() for code in info.label_names()}


def words_of(code: str) -> str:
    """A code's name in words; the code itself where nobody knows one."""
    return imagenet_names().get(code) or _lemmas().get(code, code)


def in_words(classes: Sequence[str]) -> tuple[str, ...]:
    """Class folders → names in words: codes as WordNet has them, any other with blanks for underscores."""
    return tuple(words_of(name) if is_code(name) else name.replace("_", " ") for name in classes)
