"""Two versions before the gate: what is compared, and what no force helps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from consumers.state_hold_outs import StateHoldOuts, newest_hold_outs
from deploy.judging_versions import PairScores, judge, no_shadow
from model_store.promotion import Verdict
from model_store.registry import InMemoryRegistry, RegisteredVersion
from model_store.snapshot_store import SnapshotStore
from pipeline.classifier import Classifier
from pipeline.evaluation.hold_out import HoldOut
from pipeline.evaluation.version_pair import PairScore
from pipeline.network import build_network
from pipeline.sample import InputSpec
from pipeline.settings import HoldOutSettings, InputSettings, NetworkSettings
from pipeline.user_error import UserError
from tests.consumers.digit_records import digit_stream
from tests.consumers.learner_world import STREAM, World
from tests.consumers.versions_world import register
from tests.deploy.promotion_world import good, learnt_state, settings_with, untrained, versions_of
from tests.model_store.tiny_servable import tiny_classifier


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learnt_state(tmp_path_factory.mktemp("state"))


class Court:
    """A registry, and verdicts on versions in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry = InMemoryRegistry()
        self._judged = 0

    def versions(self, *classifiers: Classifier) -> list[RegisteredVersion]:
        return versions_of(self.registry, self.folder, *classifiers)

    def judge(
        self,
        champion: RegisteredVersion | None,
        challenger: RegisteredVersion,
        state: Path | None,
        *,
        shadow: PairScores = no_shadow,
        **promotion: Any,
    ) -> Verdict:
        self._judged += 1
        scratch = self.folder / f"scratch-{self._judged}"
        scratch.mkdir()
        return judge(
            self.registry,
            champion,
            challenger,
            state=state,
            settings=settings_with(**promotion).promotion,
            scratch=scratch,
            shadow=shadow,
        )


@pytest.fixture
def court(tmp_path: Path) -> Court:
    return Court(tmp_path)


def outcomes(verdict: Verdict) -> dict[str, str]:
    return {check.name: check.outcome for check in verdict.checks}


def test_on_the_states_hold_outs(court: Court, state: Path) -> None:
    bad, better = court.versions(untrained(), good())
    passed = court.judge(bad, better, state)
    assert passed.passed
    assert passed.checks[0].champion is not None
    assert passed.checks[0].challenger is not None
    assert passed.checks[0].challenger > 0.8 > 0.3 > passed.checks[0].champion
    refused = court.judge(better, bad, state)
    assert not refused.passed
    assert refused.reasons[0].startswith("the average accuracy goes from ")
    assert {name for name, outcome in outcomes(refused).items() if outcome == "failed"} == {
        "average_accuracy",
        "worst_class_accuracy",
        "forgetting",
    }


def test_a_version_that_lost_a_class(court: Court, state: Path) -> None:
    whole, without = court.versions(good("012345"), good("01234"))
    refused = court.judge(whole, without, state)
    assert not refused.passed
    assert any("'5' of the challenger" in reason for reason in refused.reasons)
    assert court.judge(without, whole, state, worst_class_margin=0.2).passed, (
        "a class that the champion does not know cannot have fallen"
    )


def test_without_a_state_the_shadow_judges(court: Court) -> None:
    old, new = court.versions(untrained(), good())
    refused = court.judge(old, new, None)
    assert "without --state there are no hold-outs, give it the folder of `palimpsest learn`" in refused.reasons[0]
    assert refused.may_be_forced
    asked: list[tuple[int, int]] = []

    def record(champion: int, challenger: int) -> PairScore:
        asked.append((champion, challenger))
        return PairScore(
            champion_version=champion,
            challenger_version=challenger,
            labelled=200,
            champion_accuracy=0.5,
            challenger_accuracy=0.6,
            agreement=0.4,
            answered=300,
        )

    assert court.judge(old, new, None, shadow=record).passed
    assert asked == [(1, 2)]
    assert court.judge(None, new, None, shadow=record).passed
    assert asked == [(1, 2)], "without a champion there is nothing to ask for"


def test_what_serves_nobody_is_refused_for_good(court: Court, state: Path) -> None:
    old, new, broken, silent = court.versions(good(), good(), good(), good())
    tiny = register(court.registry, court.folder / "tiny", tiny_classifier(), STREAM)
    del court.registry._servables[STREAM, broken.version]["weights.safetensors"]
    nan = good()
    with torch.no_grad():
        next(iter(nan.network.parameters())).fill_(torch.nan)
    nan.save(court.folder / "nan")
    for name in ("weights.safetensors", "servable.json"):
        court.registry._servables[STREAM, silent.version][name] = (court.folder / "nan" / name).read_bytes()
    for version, says in (
        (broken, "weights.safetensors cannot be read"),
        (silent, f"models:/digits/{silent.version} answers nothing: its probabilities are not finite"),
        (tiny, "takes vector of shape (2,), and the hold-outs of --state are image of shape (1, 8, 8)"),
    ):
        refused = court.judge(old, version, state)
        assert (refused.passed, refused.may_be_forced) == (False, False)
        assert says in refused.reasons[0]
    refused = court.judge(old, tiny, None)
    assert not refused.may_be_forced
    assert "and the champion models:/digits/1 takes image of shape (1, 8, 8)" in refused.reasons[0]
    refused = court.judge(broken, new, state)
    assert (refused.passed, refused.may_be_forced) == (False, True), "whoever forces it gets rid of a broken champion"
    assert refused.reasons[0].startswith("the champion cannot be judged, so nothing is compared: ")
    foreign = replace(old, tags={})
    assert court.judge(None, foreign, state).passed, "it is looked up in the registry"


def test_the_first_version_passes_if_it_answers(court: Court, state: Path) -> None:
    (only,) = court.versions(untrained())
    passed = court.judge(None, only, state)
    assert passed.passed
    assert passed.checks[0].challenger is not None


def test_texts_that_are_read_with_other_tokens(court: Court, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Their specs are the same."""
    spec = InputSpec(kind="text", shape=(6,))

    def reading(vocabulary: int) -> Classifier:
        network = build_network(NetworkSettings(backbone="text_encoder", initial_columns=4), spec, 0)
        return Classifier(network, "ab", spec, InputSettings(max_tokens=6, vocabulary_size=vocabulary))

    old, new, other = court.versions(reading(8192), reading(8192), reading(512))
    refused = court.judge(old, other, None)
    assert not refused.may_be_forced
    assert "or reads it another way" in refused.reasons[0]
    assert court.judge(old, new, None).may_be_forced
    hold_outs = StateHoldOuts(
        sequence=1,
        spec=spec,
        input_settings=InputSettings(max_tokens=6),
        hold_out=HoldOut(HoldOutSettings()),
        best={},
    )
    monkeypatch.setattr("deploy.judging_versions.newest_hold_outs", lambda _state, _stream: hold_outs)
    refused = court.judge(None, other, tmp_path)
    assert not refused.may_be_forced
    assert "the hold-outs of --state are texts read with other tokens (vocabulary_size 8192" in refused.reasons[0]
    assert court.judge(None, new, tmp_path).passed


# -- the hold-outs of a state ------------------------------------------------------------------------------------------


def test_a_broken_newest_snapshot_gives_way_to_the_one_before(tmp_path: Path) -> None:
    state = learnt_state(tmp_path)
    whole = newest_hold_outs(state, STREAM)
    assert whole is not None
    assert whole.hold_out.classes == list("012345")
    assert whole.best
    *_, newest = SnapshotStore(state / "snapshots").entries()
    assert whole.sequence == newest.sequence
    (newest.path / newest.manifest.files[0].name).write_bytes(b"decayed")
    before = newest_hold_outs(state, STREAM)
    assert before is not None
    assert before.sequence == newest.sequence - 1


def test_snapshots_that_are_pruned_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that were listed have gone when they are loaded; the next list has others."""
    state = learnt_state(tmp_path)
    listed: Callable[[SnapshotStore], list[Path]] = SnapshotStore._folders
    lists = iter([[state / "snapshots" / "000001-0000000001"]])
    monkeypatch.setattr(SnapshotStore, "_folders", lambda store: next(lists, None) or listed(store))
    found = newest_hold_outs(state, STREAM)
    assert found is not None
    assert found.sequence > 1


def test_folders_that_say_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no whole snapshot; `palimpsest learn --state"):
        newest_hold_outs(tmp_path / "none", STREAM)
    state = learnt_state(tmp_path / "state")
    with pytest.raises(UserError, match=r"holds the state of stream 'digits' .* of 'others'"):
        newest_hold_outs(state, "others")
    world = World(tmp_path / "trial")
    world.write(digit_stream(30, clean=True))
    world.learn(branch="trial")
    with pytest.raises(UserError, match=r"branch 'trial'.* of its branch 'main'"):
        newest_hold_outs(tmp_path / "trial", STREAM)
