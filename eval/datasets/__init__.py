"""Data sets in their standard layouts → `Split`s, found through one `data_root`."""

from eval.datasets import (
    cityscapes,
    coco_captions,
    coco_instances,
    gqa,
    image_folder,
    karpathy,
    masks,
    navi,
    nyud,
    pascal_context,
    spair,
    tabletop,
    voc,
    vqa,
)

DATASETS = {  # kind → a module with `Config` and `open_split(name, config, data_root, part)`
    "tabletop": tabletop,
    "image_folder": image_folder,
    "coco_captions": coco_captions,
    "coco_instances": coco_instances,
    "karpathy_captions": karpathy,
    "masks": masks,
    "voc": voc,
    "cityscapes": cityscapes,
    "vqa": vqa,
    "gqa": gqa,
    "navi": navi,
    "spair": spair,
    "pascal_context": pascal_context,
    "nyud": nyud,
}
