"""Every block of every page is something: run, checked or listed with a reason; what is checked holds."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from deploy.settings import Settings, load_settings
from tests.docs import treatment
from tests.docs.command_lines import check_options, check_palimpsest
from tests.docs.pages import ROOT, Block, all_blocks, blocks_of, page_names, page_text
from tests.docs.shell_commands import Command, commands_of

BLOCKS = list(all_blocks())
COMMANDS = [command for block in BLOCKS if block.tag in treatment.SHELL for command in commands_of(block)]


def _ids(items: list[Block]) -> list[str]:
    return [block.where for block in items]


@pytest.mark.parametrize("block", BLOCKS, ids=_ids(BLOCKS))
def test_its_tag_says_what_becomes_of_it(block: Block) -> None:
    known = {*treatment.SHELL, *treatment.CHECKED, *treatment.SHOWN}
    assert block.tag in known, f"{block.where}: tag {block.tag!r}; known are {', '.join(sorted(known))}"
    assert block.tag != "java" or block.file_name, f"{block.where}: a first line '// Name.java' says where it is saved"


@pytest.mark.parametrize("command", COMMANDS, ids=[f"{c.block.where} {c.text[:60]}" for c in COMMANDS])
def test_a_command_is_run_or_checked(command: Command) -> None:
    assert command.calls, command.text
    for call in command.calls:
        entry = treatment.not_run(call)
        if entry is not None:
            entry.check(call[1:])
        elif call[0] == "palimpsest":
            # "..." stands for what a reader has given before
            arguments = call[1:]
            (check_options if "..." in arguments else check_palimpsest)(arguments)
        else:
            assert call[0] in treatment.RUN, f"{command.block.where}: {call[0]} is in no table of treatment.py"


@pytest.mark.parametrize("page", page_names())
def test_commands_in_sentences_have_the_options_that_there_are(page: str) -> None:
    for line in re.findall(r"`(palimpsest [a-z-]+ [^`]*)`", " ".join(page_text(page).split())):
        check_options(shlex.split(line, comments=True)[1:])


SETTINGS = [block for block in BLOCKS if block.tag == "yaml"]


@pytest.mark.parametrize("block", SETTINGS, ids=_ids(SETTINGS))
def test_yaml_is_yaml_and_settings_are_settings(block: Block, tmp_path: Path) -> None:
    read = list(yaml.safe_load_all(block.text))
    assert read
    if block.page in treatment.FOREIGN_YAML and not set(read[0]) <= set(Settings.model_fields):
        return
    assert set(read[0]) <= set(Settings.model_fields), f"{block.where}: not settings of ours"
    file = tmp_path / "settings.yaml"
    # Secrets lie in files that a reader has.
    text = re.sub(r"\S+(?=/[\w.-]+\b)", str(tmp_path), block.text) if "_file:" in block.text else block.text
    for name in re.findall(rf"{re.escape(str(tmp_path))}/([\w.-]+)", text):
        (tmp_path / name).write_text("secret\n")
    file.write_text(text)
    load_settings(file)


CODE = [block for block in BLOCKS if block.tag in ("python", "json")]


@pytest.mark.parametrize("block", CODE, ids=_ids(CODE))
def test_code_is_code(block: Block) -> None:
    if block.tag == "json":
        json.loads(block.text)
    else:
        ast.parse(block.text, block.where)


def test_the_tables_name_what_there_is() -> None:
    """A table's entry that fits nothing any more is to be taken out."""
    for page, beginning in treatment.LISTS:
        assert any(block.text.startswith(beginning) for block in blocks_of(page)), (page, beginning)
    assert set(treatment.SLOW) <= set(page_names())
    calls = [" ".join(call) for command in COMMANDS for call in command.calls]
    assert calls
    assert any(treatment.stays(command) for command in COMMANDS)


def _anchors(page: Path) -> set[str]:
    """As the usual hosts make them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)|`", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", [*page_names(), "ARCHITECTURE.md"])
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in _anchors(file), f"{page}: {target}; there are {sorted(_anchors(file))}"


def test_every_page_is_in_the_index() -> None:
    index = page_text("docs/README.md")
    missing = [
        page for page in page_names() if page.startswith("docs/") and f"({page.removeprefix('docs/')})" not in index
    ]
    assert missing == ["docs/README.md"]
