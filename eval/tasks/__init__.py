"""Tasks: frozen features → figures, each under a protocol with a version."""

from eval.tasks import (
    correspondence,
    depth,
    detection,
    fidelity,
    keypoints,
    knn,
    linear,
    match,
    multitask,
    normals,
    retrieval,
    sam,
    segmentation,
    vqa,
    zero_shot,
)

TASKS = {  # name → a module as `task.py` describes it
    "knn": knn,
    "linear": linear,
    "zero_shot": zero_shot,
    "retrieval": retrieval,
    "segmentation": segmentation,
    "depth": depth,
    "normals": normals,
    "correspondence": correspondence,
    "keypoints": keypoints,
    "multitask": multitask,
    "detection": detection,
    "sam": sam,
    "vqa": vqa,
    "match": match,
    "fidelity": fidelity,
}
