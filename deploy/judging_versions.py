"""Two registered versions before the gate: fetched, opened, and judged on a state's hold-outs and a shadow's record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from consumers.state_hold_outs import StateHoldOuts, newest_hold_outs
from consumers.version_teacher import VersionTeacher, open_version, read_alike
from model_store.model_uri import ModelUri
from model_store.promotion import Verdict, judged, unservable
from model_store.promotion_settings import PromotionSettings
from model_store.registry import RegisteredVersion, Registry
from pipeline.classifier import TOKENIZER_FOLDER
from pipeline.evaluation.version_figures import answers, compared_figures
from pipeline.evaluation.version_pair import PairScore
from pipeline.user_error import UserError

# (champion's number, challenger's) -> what both answered to the same requests; None: there is no record.
PairScores = Callable[[int, int], PairScore | None]


def no_shadow(_champion: int, _challenger: int) -> PairScore | None:
    """Where no predictor keeps a record."""
    return None


def judge(
    registry: Registry,
    champion: RegisteredVersion | None,
    challenger: RegisteredVersion,
    *,
    state: Path | None,
    settings: PromotionSettings,
    scratch: Path,
    shadow: PairScores,
) -> Verdict:
    """`state`: a learner's folder; None: nothing judges on hold-outs. `scratch`: an empty folder that goes afterwards.

    1. The challenger: opened, asked, and of one kind of input with the hold-outs. What would serve nobody is refused
       for good.
    2. The champion, if there is one. A broken one is told of, and whoever forces the promotion gets rid of it.
    3. Figures of both, and the gate.

    Raises as the registry and as `shadow`, and `UserError` where `state` is not a state of this stream.
    """
    stream = challenger.stream
    hold_outs = None if state is None else newest_hold_outs(state, stream)
    # 1.
    try:
        new = open_version(registry, ModelUri(name=stream, at=challenger.version), scratch / "challenger")
    except UserError as error:
        return unservable(str(error))
    if not answers(new.classifier):
        return unservable(f"{new.uri} answers nothing: its probabilities are not finite, so name another version")
    problem = None if hold_outs is None else _other_input(new, hold_outs)
    if problem is not None:
        return unservable(problem)
    # 2.
    old, champion_problem = None, None
    if champion is not None:
        try:
            old = open_version(registry, ModelUri(name=stream, at=champion.version), scratch / "champion")
        except UserError as error:
            champion_problem = str(error)
    if old is not None and (old.classifier.spec != new.classifier.spec or not read_alike(old, new)):
        return unservable(
            f"{new.uri} takes {_what(new)}, and the champion {old.uri} takes {_what(old)}, or reads it another way: "
            "requests to one cannot be answered by the other; give the new kind of input a stream of its own"
        )
    # 3.
    figures = compared_figures(
        None if old is None else old.classifier,
        new.classifier,
        None if hold_outs is None else hold_outs.hold_out,
        {} if hold_outs is None else hold_outs.best,
        min_class_samples=settings.min_class_samples,
    )
    record = None
    if champion is not None:
        record = shadow(champion.version, challenger.version)
        numbers = champion.version, challenger.version
        assert record is None or (record.champion_version, record.challenger_version) == numbers, "of other versions"
    why_none = (
        "without --state there are no hold-outs, give it the folder of `palimpsest learn`" if state is None else None
    )
    return judged(*figures, record, settings, no_hold_outs=why_none, champion_problem=champion_problem)


def _other_input(new: VersionTeacher, hold_outs: StateHoldOuts) -> str | None:
    """Why the held-out samples, as the state reads them, are nothing to this version."""
    if new.classifier.spec != hold_outs.spec:
        what = f"{hold_outs.spec.kind} of shape {hold_outs.spec.shape}"
    elif new.classifier.spec.kind == "text" and not _same_tokens(new, hold_outs):
        what = (
            f"texts read with other tokens (vocabulary_size {hold_outs.input_settings.vocabulary_size}, or checkpoint)"
        )
    else:
        return None
    return (
        f"{new.uri} takes {_what(new)}, and the hold-outs of --state are {what}: name the state that this version was "
        "learnt from, or another version"
    )


def _same_tokens(new: VersionTeacher, hold_outs: StateHoldOuts) -> bool:
    ours, theirs = new.classifier.input_settings, hold_outs.input_settings
    if ours.checkpoint is None or theirs.checkpoint is None:
        return (ours.checkpoint, ours.vocabulary_size) == (theirs.checkpoint, theirs.vocabulary_size)
    checkpoint = Path(theirs.checkpoint)
    if not checkpoint.is_dir():  # it is on the learner's machine alone
        return True
    files = (new.servable / TOKENIZER_FOLDER).iterdir()
    return all(
        (checkpoint / file.name).is_file() and (checkpoint / file.name).read_bytes() == file.read_bytes()
        for file in files
    )


def _what(version: VersionTeacher) -> str:
    spec = version.classifier.spec
    return f"{spec.kind} of shape {spec.shape}"
