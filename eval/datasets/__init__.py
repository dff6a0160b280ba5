"""Data sets in their standard layouts → `Split`s, found through one `data_root`."""

from eval.datasets import coco_captions, coco_instances, image_folder, masks, tabletop

DATASETS = {  # kind → a module with `Config` and `open_split(name, config, data_root, part)`
    "tabletop": tabletop,
    "image_folder": image_folder,
    "coco_captions": coco_captions,
    "coco_instances": coco_instances,
    "masks": masks,
}
