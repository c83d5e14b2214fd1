"""A Gradio app for tests, run in an environment that has Gradio: `python app.py PORT PORT`.

At the second port one has to log in, as `ann` with `pass:word`. The functions are made for tests; `submit_nochat_api`
speaks as h2oGPT's does, and is no language model.
"""

import ast
import asyncio
import sys
import time
from collections.abc import Iterator

import gradio as gr

running = 0


def shout(text: str) -> str:
    return text.upper()


def count(text: str, max_tokens: int = 5, temperature: float = 0.5) -> Iterator[str]:
    global running
    running += 1
    try:
        said = ""
        for number in range(int(max_tokens)):
            said += f"{text}{number} "
            yield said
            time.sleep(0.02)
    finally:
        running -= 1


async def sleep(text: str) -> str:
    global running
    running += 1
    try:
        await asyncio.sleep(60)
    finally:
        running -= 1
    return text


def rewrite(text: str) -> Iterator[str]:
    yield "Thinking ..."
    yield text


def refuse(text: str) -> str:
    raise gr.Error(f"the model is away: {text}", print_exception=False)


def crash(text: str) -> str:
    raise ValueError("/srv/secret/model.bin is broken")


def busy() -> int:
    return running


def join(one: str, other: str) -> str:
    return one + other


def describe(picture: str) -> str:
    return "a picture"


def respond(message, history, system_message, max_tokens) -> Iterator[str]:
    yield f"{system_message}:"
    yield f"{system_message}: {message} ({max_tokens:g})"


def h2ogpt(state: dict, arguments: str) -> Iterator[str]:
    asked = ast.literal_eval(arguments)
    if asked["instruction_nochat"] == "fail":
        yield str({"response": "", "error": "no model is loaded"})
        return
    yield str({"response": "You", "error": "", "save_dict": {}})
    yield str({"response": f"You said {asked}", "error": "", "sources": [], "save_dict": {"state": state}})


def launch(port: int, auth: tuple[str, str] | None) -> gr.Blocks:
    with gr.Blocks() as app:
        for function in (shout, count, sleep, rewrite, refuse, crash, busy, join):
            gr.api(function, api_name=function.__name__)
        button, text, output = gr.Button(), gr.Textbox(), gr.Textbox()
        button.click(describe, gr.Image(), output, api_name="describe")
        button.click(h2ogpt, [gr.State({}), text], output, api_name="submit_nochat_api")
        gr.ChatInterface(
            respond,
            additional_inputs=[gr.Textbox("Be kind", label="System message"), gr.Number(9, label="Max new tokens")],
            api_name="chat",
        )
    app.queue(max_size=2, default_concurrency_limit=2)
    app.launch(
        server_name="127.0.0.1", server_port=port, auth=auth, ssr_mode=False, quiet=True, prevent_thread_lock=True
    )
    return app


launch(int(sys.argv[1]), None)
launch(int(sys.argv[2]), ("ann", "pass:word")).block_thread()
