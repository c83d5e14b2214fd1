"""Ids in OpenAI's form: a prefix that tells the kind, and the UUID in hexadecimal digits."""

import re
from uuid import UUID

from app.errors import BatchNotFound, ConversationNotFound, FileNotFound, NotFound, PartNotFound, UploadNotFound

PREFIXES = {
    "chat.completion": "chatcmpl-",
    "text_completion": "cmpl-",
    "response": "resp_",
    "message": "msg_",
    "embedding": "embd-",
    "conversation": "conv_",
    "file": "file-",
    "batch": "batch_",
    "upload": "upload_",
    "part": "part_",
}
# Kinds whose ids are not found with a code of their own.
MISSING = {
    "file": FileNotFound,
    "batch": BatchNotFound,
    "conversation": ConversationNotFound,
    "upload": UploadNotFound,
    "part": PartNotFound,
}
_HEX = re.compile(r"[0-9a-f]{32}")


def object_id(kind: str, id_: UUID) -> str:
    return PREFIXES[kind] + id_.hex


def uuid_of(kind: str, text: str) -> UUID:
    """Raises NotFound for a text that is no id of this kind."""
    digits = text.removeprefix(PREFIXES[kind])
    if digits == text or not _HEX.fullmatch(digits):
        missing = MISSING.get(kind, NotFound)
        raise missing(f"No {kind} has the id {text[:100]!r}; such ids look like {PREFIXES[kind]}0192f3….")
    return UUID(digits)
