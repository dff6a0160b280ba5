"""Tasks: frozen features → figures, each under a protocol with a version."""

from eval.tasks import correspondence, fidelity, keypoints, knn, linear, match, retrieval, segmentation, zero_shot

TASKS = {  # name → a module as `task.py` describes it
    "knn": knn,
    "linear": linear,
    "zero_shot": zero_shot,
    "retrieval": retrieval,
    "segmentation": segmentation,
    "correspondence": correspondence,
    "keypoints": keypoints,
    "match": match,
    "fidelity": fidelity,
}
