"""Chat templates are rendered as their models' makers expect."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.config import Settings
from app.errors import ChatTemplateBroken, ChatTemplateRefused, NoChatTemplate
from app.prompts.templates import Templates

ROOT = Path(__file__).resolve().parents[2]
HELLO = [{"role": "user", "content": "Hello <b>"}]


class Repository:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.templates = Templates(Settings(model_repository=str(folder), max_content_chars=10_000))

    def write(self, template: str, tokenizer: dict[str, Any] | None = None) -> None:
        folder = self.folder / "m" / "1"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "chat_template.jinja").write_text(template)
        if tokenizer is not None:
            (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))

    async def render(self, template: str, tokenizer: dict[str, Any] | None = None, /, **variables: Any) -> str:
        self.write(template, tokenizer)
        return await self.templates.render("m", HELLO, **variables)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


async def test_blocks_are_trimmed(repository: Repository) -> None:
    template = "{% for m in messages %}\n    {% if true %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}"
    assert await repository.render(template) == "Hello <b>\n"


async def test_json_is_not_escaped_for_html(repository: Repository) -> None:
    made = await repository.render("{{ messages | tojson }}|{{ {'ü': 1} | tojson(indent=1) }}")
    assert made == '[{"role": "user", "content": "Hello <b>"}]|{\n "ü": 1\n}'


async def test_loops_can_be_left(repository: Repository) -> None:
    assert (
        await repository.render("{% for n in [1, 2, 3] %}{% if n == 3 %}{% break %}{% endif %}{{ n }}{% endfor %}")
        == "12"
    )


async def test_generation_marks_are_passed_through(repository: Repository) -> None:
    assert await repository.render("a{% generation %}b{{ messages[0].role }}{% endgeneration %}c") == "abuserc"


async def test_the_date_can_be_asked(repository: Repository) -> None:
    assert (await repository.render("{{ strftime_now('%Y') }}")).isdigit()


async def test_the_tokens_of_the_tokenizer_are_known(repository: Repository) -> None:
    tokens = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": None}
    assert await repository.render("x{{ bos_token }}{{ eos_token }}", tokens) == "x<s></s>"


@pytest.mark.parametrize(("adds", "made"), [(True, "hi"), (None, "hi"), (False, "<s>hi")])
async def test_the_first_token_comes_once(repository: Repository, adds: bool | None, made: str) -> None:
    config = {"bos_token": "<s>"} | ({} if adds is None else {"add_bos_token": adds})
    assert await repository.render("{{ bos_token }}hi", config) == made


async def test_without_a_tokenizer_the_tokens_are_empty(repository: Repository) -> None:
    assert await repository.render("{{ bos_token }}hi{{ eos_token }}") == "hi"


async def test_variables_reach_the_template(repository: Repository) -> None:
    made = await repository.render("{{ enable_thinking }} {{ tools is none }}", enable_thinking=False, tools=None)
    assert made == "False True"


async def test_no_variable_is_taken_for_something_else(repository: Repository) -> None:
    variables = {"model": "x", "self": "y", "not a name": 1}
    assert await repository.render("{{ model }}{{ messages[0].role }}", **variables) == "xuser"


async def test_a_file_that_changed_is_read_again(repository: Repository) -> None:
    assert await repository.render("one") == "one"
    file = repository.folder / "m" / "1" / "chat_template.jinja"
    file.write_text("two")
    os.utime(file, ns=(1, 1))
    assert await repository.templates.render("m", HELLO) == "two"
    file.unlink()
    with pytest.raises(NoChatTemplate, match=r"m/1/chat_template\.jinja"):
        await repository.templates.render("m", HELLO)


@pytest.mark.parametrize("name", ["../m", "m/../m", "..", "", "a\x00b", "/etc"])
async def test_no_name_leads_out_of_the_repository(repository: Repository, name: str) -> None:
    repository.write("x")
    with pytest.raises(NoChatTemplate):
        await repository.templates.render(name, HELLO)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[5].content }}", "no element 5"),
        ("{{ 1 + messages[0].content }}", "unsupported operand"),
        ("{{ messages[0].content.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "not safely callable|unsafe"),
        ("{% for n in range(200000) %}x{% endfor %}", "too big|10,000"),
        ("{% for n in range(20000) %}x{% endfor %}", "10,000"),
        ("{# nothing #}", "empty"),
    ],
)
async def test_what_a_template_refuses_is_told(repository: Repository, template: str, reason: str) -> None:
    with pytest.raises(ChatTemplateRefused, match=reason):
        await repository.render(template)


async def test_a_template_that_takes_too_long_is_stopped(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.prompts.templates.LONGEST_SECONDS", 0.05)
    loops = "{% for a in range(9999) %}{% for b in range(9999) %}{{ '' }}{% endfor %}{% endfor %}"
    with pytest.raises(ChatTemplateRefused, match="seconds"):
        await repository.render(loops)


@pytest.mark.parametrize("template", ["{% if %}", "{{ x", "{% unknown %}"])
async def test_a_file_that_is_no_template_is_the_operators(repository: Repository, template: str) -> None:
    with pytest.raises(ChatTemplateBroken, match="line 1"):
        await repository.render(template)


async def test_a_tokenizer_file_that_is_broken_is_the_operators(repository: Repository) -> None:
    repository.write("x", {})
    (repository.folder / "m" / "1" / "tokenizer_config.json").write_text("{")
    with pytest.raises(ChatTemplateBroken, match="tokenizer_config"):
        await repository.templates.render("m", HELLO)


async def test_long_chats_are_rendered_off_the_event_loop(repository: Repository) -> None:
    repository.write("{{ messages | length }}")
    long = [{"role": "user", "content": "x" * 50_000}] * 3
    assert await repository.templates.render("m", long) == "3"


async def test_every_model_of_the_repository_that_chats_takes_a_chat_with_tools(
    make_settings: Callable[..., Settings],
) -> None:
    templates = Templates(make_settings(model_repository=str(ROOT / "models")))
    found = [file.parents[1].name for file in (ROOT / "models").glob("*/1/chat_template.jinja")]
    assert "demo" in found
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
        {"role": "tool", "content": "done"},
        {"role": "tool", "content": "done too"},
    ]
    for model in found:
        prompt = await templates.render(model, chat, tools=[{"function": {"name": "f"}}], add_generation_prompt=True)
        assert prompt.count("Be brief.") == prompt.count("done too") == 1
        assert prompt.endswith("assistant\n")
