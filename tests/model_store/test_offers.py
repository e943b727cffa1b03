from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model_store.manifest import NotWhole
from model_store.offers import OfferStore
from model_store.snapshot import Snapshot
from pipeline.record import Partition
from pipeline.state import fingerprint

PARENT = Snapshot(
    generation=3,
    sequence=12,
    state={"weights": torch.arange(6.0), "records_consumed": 40},
    offsets={Partition("digits.samples", 0): 40},
    facts={"stream": "digits", "state_id": "a"},
)
RESULT = Snapshot(
    generation=0, sequence=0, state={"weights": torch.ones(6), "records_consumed": 40}, offsets={}, facts=PARENT.facts
)


def test_an_offer_stands_in_its_parents_place_with_what_the_job_says(tmp_path: Path) -> None:
    offers = OfferStore(tmp_path / "offers")
    assert offers.waiting() == []
    offers.put("consolidation-7", "consolidation", PARENT, RESULT, {"accuracy": 0.5})
    (offer,) = OfferStore(tmp_path / "offers").waiting()
    assert (offer.job, offer.entry.number) == ("consolidation-7", (3, 12))
    assert offer.facts == {"kind": "consolidation", "job": "consolidation-7", "accuracy": 0.5}
    loaded = offers.load(offer)
    assert fingerprint(loaded.state) == fingerprint(RESULT.state)
    assert loaded.offsets == PARENT.offsets
    assert loaded.facts["state_id"] == "a"


def test_a_job_that_is_done_twice_offers_once(tmp_path: Path) -> None:
    offers = OfferStore(tmp_path)
    first = offers.put("consolidation-7", "consolidation", PARENT, RESULT, {})
    second = offers.put("consolidation-7", "consolidation", PARENT, PARENT, {})
    assert second.entry.sha256 == first.entry.sha256
    offers.put("expansion-9", "expansion", PARENT, RESULT, {})
    assert [offer.job for offer in offers.waiting()] == ["consolidation-7", "expansion-9"]
    offers.remove("consolidation-7")
    assert [offer.job for offer in offers.waiting()] == ["expansion-9"]


def test_what_a_killed_job_left_is_no_offer_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    offers = OfferStore(tmp_path)
    (tmp_path / "consolidation-1" / "000003-0000000012").mkdir(parents=True)
    (tmp_path / "Not A Job").mkdir()
    assert offers.waiting() == []
    offer = offers.put("consolidation-2", "consolidation", PARENT, RESULT, {})
    (offer.entry.path / offer.entry.manifest.files[0].name).write_bytes(b"decayed")
    assert offers.waiting() == [offer]
    with pytest.raises(NotWhole):
        offers.load(offer)


@pytest.mark.parametrize("name", ["", "..", "Consolidation-1", "consolidation", "consolidation-1/x", "-1"])
def test_only_a_jobs_name_names_a_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(AssertionError):
        OfferStore(tmp_path).put(name, "consolidation", PARENT, RESULT, {})
