"""Which keys `model.json` may hold: vLLM's AsyncEngineArgs refuses every other one, so this does too."""

from engine_arguments import CHECKED, LIFETIMES

# Keys that vLLM had dropped before this release are refused; those it or a later one knows pass.
STANDS_IN_FOR = "0.10.2"
_SERVED = CHECKED[CHECKED.index(STANDS_IN_FOR) :]


def check(arguments: dict) -> None:
    for key in arguments:
        if key not in LIFETIMES or LIFETIMES[key][1] not in _SERVED:
            raise TypeError(f"AsyncEngineArgs.__init__() got an unexpected keyword argument '{key}'")
