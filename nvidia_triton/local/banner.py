"""What a started stack tells its user."""

import json

from nvidia_triton.local.settings import LocalSettings

QUESTION = "What is the capital of France?"
# As the model of `models/demo` knows a chat: a stored prompt goes to the engine as it stands.
PROMPT = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
PARAMETERS = {"temperature": 0}


def pick(field: str) -> str:
    """A shell filter that prints one field of a JSON object."""
    return f"""python3 -c 'import json,sys; print(json.load(sys.stdin)["{field}"])'"""


def curl_lines(url: str) -> list[str]:
    """Three lines for a shell that store a prompt, send it to the model `demo` and wait for the answer."""
    header = "-H 'Content-Type: application/json'"
    context, options = json.dumps({"content": PROMPT}), json.dumps({"parameters": PARAMETERS})
    return [
        f"CONTEXT=$(curl -sS {url}/contexts/ {header} -d '{context}' | {pick('id')})",
        f"RESULT=$(curl -sS {url}/models/send/demo/$CONTEXT {header} -d '{options}' | {pick('result_id')})",
        f"curl -sS -H 'Prefer: wait=30' {url}/results/$RESULT",
    ]


def banner(settings: LocalSettings, seconds: float, models: dict[str, str], *, colour: bool) -> str:
    """`models`: what answers for each model of the local server."""
    bold, plain = ("\x1b[1m", "\x1b[0m") if colour else ("", "")
    url = settings.api_url
    if settings.no_fixed_server:
        there = "those of" if settings.servers_file.exists() else "none yet; they are read from"
        rest = [
            f"  Servers   {there} {settings.servers_file}",
            "",
            "Tickets wait until a server is there; one that is added or removed needs no restart.",
        ]
    else:
        rest = ["", "Try it in a second terminal (`make demo` does the same):", "", *curl_lines(url)]
    return "\n".join([
        "",
        f"{bold}Ready after {seconds:.1f} s.{plain} Ctrl-C stops everything.",
        "",
        f"  API       {bold}{url}{plain}",
        f"  API docs  {bold}{url}/docs{plain}",
        *(f"  Model     {bold}{name}{plain}: {words}" for name, words in models.items()),
        *rest,
        "",
    ])  # fmt: skip
