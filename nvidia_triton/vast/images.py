"""NVIDIA's Triton images with vLLM, and what each asks of its host: the compatibility matrix of their release notes.

The one table of it. Whoever adds a release adds its vLLM to nvidia_triton/engine_arguments.py.
"""

from dataclasses import dataclass

AUTO = "auto"
SUFFIX = "-vllm-python-py3"


@dataclass(frozen=True)
class Release:
    """`cuda` and `driver` are the least a host must have."""

    number: str
    cuda: str
    driver: str

    @property
    def tag(self) -> str:
        return f"{self.number}{SUFFIX}"


# The oldest first.
RELEASES = (
    Release("25.07", "12.9", "575.51"),
    Release("25.10", "13.0", "580.95"),
    Release("25.12", "13.1", "590.44"),
    Release("26.02", "13.1", "590.48"),
    Release("26.04", "13.2", "595.58"),
    Release("26.07", "13.3", "610.43"),
)
NUMBERS = ", ".join(release.number for release in RELEASES)


def release_of(tag: str) -> Release | None:
    """The release of a tag such as `25.10-vllm-python-py3`."""
    return next((release for release in RELEASES if tag.split("-")[0] == release.number), None)


def newest_for(cuda: str, driver: str) -> Release | None:
    """The newest release that a host carries, by the CUDA and driver it has; what is not known counts as enough."""
    carried = [
        release
        for release in RELEASES
        if (not cuda or version(cuda) >= version(release.cuda))
        and (not driver or version(driver) >= version(release.driver))
    ]
    # A host of which nothing is known is trusted with the oldest alone.
    return (carried[-1] if cuda or driver else RELEASES[0]) if carried else None


def version(text: object) -> tuple[int, ...]:
    """`580.95.05` as numbers that compare."""
    return tuple(int(part) for part in str(text or 0).split(".") if part.isdigit())
