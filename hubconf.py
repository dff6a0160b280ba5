"""Files on disk → a student: `torch.hub.load(REPO, "student", RUN_OR_EXPORT_OR_CHECKPOINT, source="local")`."""

dependencies = ["torch", "timm", "einops", "safetensors", "huggingface_hub"]


def student(path, adaptor_names=(), vitdet_window_size=None, device="cpu"):
    """A student with RADIO's calling convention (see `HubStudent`).

    Args:
        path: a run folder, an export or Hugging Face folder, or a checkpoint file of the public RADIO hub.
        adaptor_names: the teachers in whose spaces it answers too.
        vitdet_window_size: patches a side of the windows that most blocks see; none = all see the whole image.
    """
    from teachers.radio_encoder import RadioEncoder
    from teachers.radio_hub import HubStudent

    return HubStudent(RadioEncoder.load(path, device), adaptor_names, vitdet_window_size)


def radio_model(
    version, adaptor_names=None, vitdet_window_size=None, neck_name=None, return_checkpoint=False, progress=True,
    device="cpu",
):  # fmt: skip
    """`student` under RADIO's own name and arguments; `version` is a path, as RADIO's may be (nothing is fetched).

    Args:
        progress: taken, and not needed.
        neck_name: RADIO1D's; there is none here.
        return_checkpoint: return `(model, checkpoint)`, the dict of a checkpoint file or the folder's config.
    """
    from teachers.errors import UserError
    from teachers.radio_files import find_student, load_checkpoint, read_config

    if neck_name is not None:
        raise UserError("this model has no necks", expected="neck_name=None", todo="leave neck_name out")
    model = student(version, adaptor_names or (), vitdet_window_size, device)
    if not return_checkpoint:
        return model
    place = find_student(version)
    return model, load_checkpoint(place) if place.is_file() else read_config(place)
