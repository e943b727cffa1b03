from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy.commands.demo import command
from deploy.embedded_kafka import EmbeddedKafka
from pipeline.user_error import UserError
from tests.deploy.command_line import Running, palimpsest
from tests.deploy.report_file import embedded

pytestmark = pytest.mark.kafka


def refusal(*arguments: object) -> str:
    """What deploy/cli.py would show in one line, with code 2."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


@pytest.mark.timeout(900)
def test_it_shows_forgetting_and_what_keeps_it_away(tmp_path: Path) -> None:
    """From another folder than the project's, into one that holds something of the user's."""
    out = Path("runs") / "demo"
    (tmp_path / out).mkdir(parents=True)
    (tmp_path / out / "notes.txt").write_text("mine")
    done = palimpsest("demo", "--out", out, cwd=tmp_path, timeout=800)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / out
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary) == [
        "broker",
        "seconds",
        "records",
        "accuracy",
        "average_forgetting",
        "classes",
        "finetune",
        "restructurings",
        "network",
        "served",
        "versions",
    ]
    assert summary["broker"] == "Apache Kafka 4.3.1, embedded"
    records = summary["records"]
    assert list(records) == ["produced", "trained", "held_out", "unlabelled", "dead_letters"]
    # Nothing is lost and nothing doubled: what was produced is trained on, held out, or had no label.
    assert (records["produced"], records["unlabelled"], records["dead_letters"]) == (12_000, 1_800, 0)
    assert records["trained"] + records["held_out"] == 10_200
    assert records["held_out"] > 100
    assert set(summary["classes"]) == {str(digit) for digit in range(10)}
    for figures in summary["classes"].values():
        assert list(figures) == ["accuracy", "best", "forgetting"]
        assert figures["forgetting"] == pytest.approx(figures["best"] - figures["accuracy"])
        assert 0 <= figures["accuracy"] <= figures["best"] <= 1
    assert list(summary["finetune"]) == ["accuracy", "average_forgetting"]
    assert summary["accuracy"] > summary["finetune"]["accuracy"] + 0.1
    assert summary["average_forgetting"] < summary["finetune"]["average_forgetting"] - 0.1
    # The first new classes are learnt well in the network that there is; for the last ones it grows.
    consolidation, expansion = summary["restructurings"]
    assert [job["kind"] for job in (consolidation, expansion)] == ["consolidation", "expansion"]
    for job in (consolidation, expansion):
        assert job["outcome"] == "adopted"
        assert job["reason"] == "new_classes"
        assert len(job["new_classes"]) == 4
        assert job["average_accuracy_after"] > job["average_accuracy_before"] - 0.01
    sizes = summary["network"]
    assert [(size["after"], size["sub_modules"]) for size in sizes] == [
        ("begin", 1),
        ("consolidation", 1),
        ("expansion", 2),
    ]
    assert sizes[0]["parameters"] == sizes[1]["parameters"] < sizes[2]["parameters"] < 2 * sizes[0]["parameters"]
    assert sizes[2]["parameters"] == expansion["parameters_after"]
    assert sizes == sorted(sizes, key=lambda size: size["records"])
    triggers = [version["trigger"] for version in summary["versions"]]
    assert [trigger for trigger in triggers if trigger != "periodic"] == ["consolidation", "expansion", "final"]
    assert summary["versions"][-1]["offsets"] == {"demo-digits.samples-0": 10_200}
    # The newest version is promoted since it is no worse, and answers each record without a label once.
    promoted, answers = summary["served"]["promoted"], summary["served"]["answers"]
    assert (promoted["before"], promoted["version"], promoted["passed"]) == (1, len(triggers), True)
    before, after = promoted["figures"]["average_accuracy"]
    assert before < after
    assert answers["requests"] == sum(answers["labels"].values()) == 1_800
    assert set(answers["labels"]) == {str(digit) for digit in range(10)}
    # What it printed.
    assert "der_pp + ewc_pp" in done.stdout
    assert "no retention" in done.stdout
    average = next(line for line in done.stdout.splitlines() if line.strip().startswith("average"))
    assert average.split()[1:] == [
        f"{100 * share:.1f}%"
        for share in (
            summary["accuracy"],
            summary["average_forgetting"],
            summary["finetune"]["accuracy"],
            summary["finetune"]["average_forgetting"],
        )
    ]
    page = (folder / "metrics.prom").read_text()
    assert "palimpsest_average_forgetting_ratio" in page
    assert 'palimpsest_consolidations_total{outcome="adopted"} 1.0' in page
    assert 'palimpsest_expansions_total{outcome="adopted"} 1.0' in page
    assert "palimpsest_sub_modules 2.0" in page
    assert f"  {consolidation['job']} was adopted" in done.stdout.splitlines()
    assert f"  {expansion['job']} was adopted" in done.stdout.splitlines()
    assert f"{sizes[2]['parameters']:,}  expansion" in done.stdout
    assert f"accuracy {consolidation['average_accuracy_before']:.1%} before, " in done.stdout
    assert f"promoted models:/demo-digits/{promoted['version']}; previous is 1" in done.stdout
    assert "1,800 requests, each answered once" in done.stdout
    # No line is longer but for the folders that it names: those are as long as their reader's are.
    for line in done.stdout.splitlines():
        assert len(line.replace(str(tmp_path), "").replace(sys.prefix, "")) <= 140, line
    assert not [line for line in done.stderr.splitlines() if not line.startswith("producing: ")], done.stderr
    # It ends with the picture of it, which has the plain baseline and what was told.
    assert done.stdout.splitlines()[-1] == f"  {out / 'report.html'}"
    shown = embedded(folder / "report.html")
    assert (shown["stream"], shown["branch"], shown["records"]) == ("demo-digits", "main", 10_200)
    assert {entry["name"] for entry in shown["classes"]} == set(summary["classes"])
    assert shown["baseline"]["evaluated"]["forgetting"] > shown["evaluated"]["forgetting"] + 0.1
    assert shown["events"]["problem"] is None
    told = [line["kind"] for line in shown["events"]["lines"]]
    assert (told.count("new_class"), told.count("adopted"), told.count("promoted")) == (10, 2, 2)
    roles = {version["role"]: version["version"] for version in shown["versions"]}
    assert (roles["champion"], roles["previous"]) == (len(triggers), 1)
    # Nothing runs on, and what it made can be looked at as it says.
    assert EmbeddedKafka(folder / "broker").pid is None
    listed = palimpsest("snapshots", "--state", out / "state", cwd=tmp_path)
    assert listed.returncode == 0
    assert "10200" in listed.stdout
    assert (folder / "notes.txt").read_text() == "mine"


def test_things_that_no_demo_made_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "mine").touch()
    assert refusal("--out", tmp_path) == f"{tmp_path} holds mlruns, and not from a demo; give another --out"
    assert (tmp_path / "mlruns" / "mine").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "demo"
    assert refusal("--out", out) == f"cannot write to {out}: Not a directory; give another --out"


@pytest.mark.slow
def test_on_a_cluster_that_is_there_nothing_is_embedded(kafka_broker: EmbeddedKafka, tmp_path: Path) -> None:
    servers = kafka_broker.bootstrap_servers
    for out in ("first", "second"):  # the second learns what it sent itself, and nothing of the first
        done = palimpsest(
            "demo", "--records", 500, "--out", tmp_path / out, env={"PALIMPSEST_KAFKA__BOOTSTRAP_SERVERS": servers}
        )
        assert done.returncode == 0, done.stderr
        summary = json.loads((tmp_path / out / "summary.json").read_text())
        assert summary["broker"] == f"the Kafka cluster at {servers}"
        assert summary["records"]["trained"] + summary["records"]["held_out"] == 425
        assert not (tmp_path / out / "broker").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=["kill -9", "SIGTERM", "Ctrl-C"]
)
def test_after_an_interruption_it_runs_again(tmp_path: Path, number: signal.Signals) -> None:
    demo = ("demo", "--records", 500, "--out", tmp_path / "demo")
    broker = EmbeddedKafka(tmp_path / "demo" / "broker")
    with Running(*demo) as running:
        running.wait_for(lambda lines: any(line.startswith("learning with") for line in lines))
        left_behind = broker.pid
        assert left_behind is not None
        running.signal(number)
        code = running.end()
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL
        assert broker.pid == left_behind, "nobody was left to stop it"
    else:
        assert code == 128 + number
        assert not [line for line in running.lines if "Traceback" in line]
        assert broker.pid is None
    again = palimpsest(*demo)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "demo" / "summary.json").read_text())["records"]["produced"] == 500
    assert broker.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(left_behind, 0)
