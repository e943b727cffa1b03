"""Every page as a reader follows it: commands in order, files saved under their names, in a folder of its own."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.embedded_kafka import EmbeddedKafka
from pipeline.codec.image import encode_png
from tests.consumers.digit_records import digit_images
from tests.docs import treatment
from tests.docs.page_machine import PageMachine, machine
from tests.docs.page_shell import PageShell
from tests.docs.pages import ROOT, Block, blocks_of, page_names, page_text
from tests.docs.shell_commands import Command, commands_of
from tests.system_package import require_program

pytestmark = pytest.mark.kafka

# A page that asks for versions; the learners of the others register none, which would import MLflow in each.
_ASKS_FOR_VERSIONS = re.compile(r"palimpsest (models|promote|predict|rollback)|models:/")
# Of a console block: what differs from run to run.
_FIGURE = re.compile(r"[0-9a-f]{12,}|[\d.,:]*\d[\d.,:]*")


def _commands(page: str) -> list[Command]:
    return [command for block in blocks_of(page) if block.tag in treatment.SHELL for command in commands_of(block)]


def _is_followed(page: str) -> bool:
    runs_python = any(block.tag in ("python", "java") for block in blocks_of(page))
    return runs_python or any(treatment.is_run(command) for command in _commands(page))


PAGES = [
    pytest.param(page, marks=[pytest.mark.slow] if page in treatment.SLOW else [])
    for page in page_names()
    if _is_followed(page)
]


@pytest.fixture(scope="module")
def page_machine(
    kafka_broker: EmbeddedKafka, empty_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PageMachine]:
    with machine(kafka_broker, empty_database, tmp_path_factory.mktemp("page_machine")) as made:
        yield made


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_can_be_followed(page: str, page_machine: PageMachine, tmp_path: Path) -> None:
    for program in {name for command in _commands(page) if treatment.is_run(command) for name in command.programs}:
        if program in treatment.SYSTEM_PACKAGES:
            require_program(program, package=treatment.SYSTEM_PACKAGES[program])
    folder = tmp_path / "reader"
    folder.mkdir()
    (folder / "seven.png").write_bytes(encode_png(digit_images()[0][7]))  # a reader has a picture of one
    source = ROOT
    if treatment.wants_a_copy(page, _commands(page)):
        source = page_machine.copy_of_the_repository(folder)
    registers = bool(_ASKS_FOR_VERSIONS.search(page_text(page)))
    if registers:
        (folder / "runs").mkdir(exist_ok=True)
        shutil.copy(page_machine.empty_database, folder / "runs" / "mlflow.db")
    environment = page_machine.environment(folder, registers=registers, source=source)
    with page_machine.own_topics(), PageShell(folder, tmp_path / "logs", environment) as shell:
        for block in blocks_of(page):
            if block.tag in treatment.SHELL:
                for command in commands_of(block):
                    _follow(command, page_machine, shell)
            elif block.tag in treatment.FILES and (block.file_name or block.tag == "python"):
                _save(block, folder, page_machine, shell)


def _follow(command: Command, page_machine: PageMachine, shell: PageShell) -> None:
    if not treatment.is_run(command):
        return
    text = page_machine.as_here(command.text)
    ports = page_machine.port_settings(taken=shell.has_learner)
    if treatment.stays(command):
        assert not command.shown, f"{command.block.where}: what stays shows nothing that could be compared"
        shell.begin(command, f"{ports} {text}")
        return
    if command.words[:2] == ["palimpsest", "learn"]:
        text = f"{ports} {text}"
    said = shell.run(command, text)
    _compare(command, said.replace(page_machine.broker.bootstrap_servers, "localhost:9092"))


def _save(block: Block, folder: Path, page_machine: PageMachine, shell: PageShell) -> None:
    """A file with a name is saved, and its page says what to do with it; Python without one is run at its place."""
    name = block.file_name or f"line-{block.line}.py"
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(page_machine.as_here(block.text))
    if block.file_name is None:
        command = Command(block=block, text=f"python {name}")
        shell.run(command, command.text)


def _compare(command: Command, said: str) -> None:
    """Every line that the page shows is there, in this order; figures, and how wide columns are, may differ."""
    lines = iter([_loosely(line) for line in said.splitlines()])
    for shown in command.shown:
        if shown.strip() in ("", "..."):
            continue
        assert any(line == _loosely(shown) for line in lines), (
            f"{command.block.where}: {command.text}\nshows {shown!r}; it said:\n{said}"
        )


def _loosely(line: str) -> str:
    return " ".join(_FIGURE.sub("0", line).split())
