"""A folder on disk → a student: `torch.hub.load(REPO, "student", RUN_OR_EXPORT, source="local")`."""

dependencies = ["torch", "timm", "einops", "safetensors"]


def student(path, adaptor_names=(), device="cpu"):
    """A student from a run folder or an export folder, with RADIO's calling convention (see `HubStudent`)."""
    from teachers.radio_encoder import HubStudent, RadioEncoder

    return HubStudent(RadioEncoder.load(path, device), adaptor_names)
