"""What keeps a target from doing its work, in a sentence that says what to do."""


class TargetError(Exception):
    """Shown to the user as it stands: what happened, why, what to do; no secret, no trace."""
