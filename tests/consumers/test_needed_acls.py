"""The operators' page has the ACLs that the code knows, all of them and no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from consumers.acls import Acl, refusal
from consumers.needed_acls import Role, needed_acls

PAGE = Path(__file__).parents[2] / "docs" / "operator" / "topics.md"
ROLES: tuple[Role, ...] = ("learner", "producer", "dead-letters", "restructure", "promote", "predict", "check")


def page_lines() -> list[str]:
    return [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("kafka-acls.sh")]


def test_the_page_has_the_lines_to_copy() -> None:
    wanted = [f"{acl.command(f'User:{role}')}  # {acl.why}" for role in ROLES for acl in needed_acls(role, "digits")]
    assert page_lines() == wanted


def test_another_branch_needs_nothing_of_the_streams_own_topics() -> None:
    acls = needed_acls("learner", "digits", "trial")
    assert [(acl.resource, acl.name) for acl in acls] == [
        ("transactional-id", "palimpsest.digits.trial.learner"),
        ("group", "palimpsest.digits.trial.learner"),
        ("topic", "digits.samples"),
    ]
    assert all("Write" not in acl.operations for acl in acls if acl.resource == "topic")


@pytest.mark.parametrize("role", ROLES)
def test_each_says_what_it_is_for(role: Role) -> None:
    acls = needed_acls(role, "digits")
    assert all(acl.why and acl.operations for acl in acls)
    assert len(set(acls)) == len(acls)


def test_the_lines_are_kafkas() -> None:
    acl = Acl(resource="topic", name="digits.samples", operations=("Read", "DescribeConfigs"))
    assert acl.command("User:learner") == (
        "kafka-acls.sh $ADMIN --add --allow-principal User:learner --operation Read --operation DescribeConfigs "
        "--topic digits.samples"
    )
    acl = Acl(resource="cluster", name="kafka-cluster", operations=("Describe",))
    assert acl.command("User:check").endswith(" --operation Describe --cluster")


def test_a_prefix_is_said_to_be_one() -> None:
    acl = Acl(resource="transactional-id", name="palimpsest.", operations=("Write",), prefixed=True)
    assert acl.command("User:p").endswith(" --transactional-id palimpsest. --resource-pattern-type prefixed")


def test_a_refusal_is_one_line_with_the_way_out() -> None:
    line = refusal("group", "palimpsest.digits.main.learner", "Read")
    assert "Read on group palimpsest.digits.main.learner" in line
    assert "--operation Read --group palimpsest.digits.main.learner" in line
    assert "$" not in line
    assert "\n" not in line
