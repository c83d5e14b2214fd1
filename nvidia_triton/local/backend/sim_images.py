"""The images of a request: read as the real backend reads them, so that what it cannot read fails here too."""

import base64
import binascii
import io


def limit(arguments: dict) -> int:
    """How many a prompt may have. vLLM knows from the weights whether a model sees; here `model.json` has to say it."""
    return int((arguments.get("limit_mm_per_prompt") or {}).get("image", 0))


def opened(tensor, most: int) -> int:
    """How many there are; raises the engine's error for what is no image, or one too many."""
    if tensor is None:
        return 0
    from PIL import Image  # a text model needs it not

    images = tensor.as_numpy().reshape(-1)
    for image in images:
        try:
            data = base64.b64decode(image.decode("utf-8"))
        except binascii.Error as error:
            raise ValueError(f"cannot identify image file: {error}") from None
        Image.open(io.BytesIO(data)).convert("RGB")
    if len(images) > most:
        raise ValueError(f"At most {most} image(s) may be provided in one prompt.")
    return len(images)
