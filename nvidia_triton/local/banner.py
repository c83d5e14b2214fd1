"""What a started stack tells its user."""

import json
from urllib.parse import quote

from nvidia_triton.local.settings import LocalSettings
from nvidia_triton.local.trial import PREFERRED, Trial

QUESTION = "What is the capital of France?"
# As the model of `models/demo` knows a chat: a stored prompt goes to the engine as it stands.
PROMPT = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
PARAMETERS = {"temperature": 0}


def pick(field: str) -> str:
    """A shell filter that prints one field of a JSON object."""
    return f"""python3 -c 'import json,sys; print(json.load(sys.stdin)["{field}"])'"""


def prompt_for(model: str) -> str:
    """The question as the model `demo` knows a chat; another's own words for one are not known here."""
    return PROMPT if model == PREFERRED else QUESTION


def curl_lines(url: str, model: str = PREFERRED) -> list[str]:
    """Three lines for a shell that store a prompt, send it to a model and wait for the answer."""
    header = "-H 'Content-Type: application/json'"
    context, options = json.dumps({"content": prompt_for(model)}), json.dumps({"parameters": PARAMETERS})
    path = f"models/send/{quote(model, safe='')}/$CONTEXT"
    return [
        f"CONTEXT=$(curl -sS {url}/contexts/ {header} -d '{context}' | {pick('id')})",
        f"RESULT=$(curl -sS {url}/{path} {header} -d '{options}' | {pick('result_id')})",
        f"curl -sS -H 'Prefer: wait=30' {url}/results/$RESULT",
    ]


def banner(settings: LocalSettings, trial: Trial, seconds: float, models: dict[str, str], *, colour: bool) -> str:
    """`trial` is what to try first, `models` what answers for each model of the local server."""
    bold, plain = ("\x1b[1m", "\x1b[0m") if colour else ("", "")
    url = settings.api_url
    rest = [""]
    if settings.no_fixed_server:
        there = "those of" if settings.servers_file.exists() else "none yet; they are read from"
        rest = [f"  Servers   {there} {settings.servers_file}", ""]
    if trial.model:
        rest += ["Try it in a second terminal (`make demo` does the same):", "", *curl_lines(url, trial.model)]
    elif settings.no_fixed_server and not settings.servers_file.exists():
        rest += ["Tickets wait until a server is there; one that is added or removed needs no restart."]
    else:
        rest += [trial.instead]
    return "\n".join([
        "",
        f"{bold}Ready after {seconds:.1f} s.{plain} Ctrl-C stops everything.",
        "",
        f"  Console   {bold}{url}/console/{plain}",
        f"  API       {bold}{url}{plain}",
        f"  API docs  {bold}{url}/docs{plain}",
        *(f"  Model     {bold}{name}{plain}: {words}" for name, words in models.items()),
        *rest,
        "",
    ])  # fmt: skip
