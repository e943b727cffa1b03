"""An ACL: what one user must be allowed on one resource of the brokers, and the line that allows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Resource = Literal["topic", "group", "transactional-id", "cluster"]
Operation = Literal["Read", "Write", "Create", "Describe", "DescribeConfigs"]  # as kafka-acls.sh spells them

# The same in the answers of kafka-python, where brokers say what a user may do.
KAFKA_NAMES: dict[Operation, str] = {
    "Read": "READ",
    "Write": "WRITE",
    "Create": "CREATE",
    "Describe": "DESCRIBE",
    "DescribeConfigs": "DESCRIBE_CONFIGS",
}
CLUSTER = "kafka-cluster"  # the one name that the resource "cluster" has


@dataclass(frozen=True, slots=True, kw_only=True)
class Acl:
    """`operations` on the resource of this very name, or `prefixed`: on all whose names begin so."""

    resource: Resource
    name: str
    operations: tuple[Operation, ...]
    why: str = ""
    prefixed: bool = False

    def __str__(self) -> str:
        return f"{' and '.join(self.operations)} on {self.resource} {self.name}"

    def command(self, principal: str) -> str:
        """The line that gives it; `$ADMIN` stands for the way to the brokers as somebody who may give it."""
        operations = " ".join(f"--operation {operation}" for operation in self.operations)
        resource = "--cluster" if self.resource == "cluster" else f"--{self.resource} {self.name}"
        pattern = " --resource-pattern-type prefixed" if self.prefixed else ""
        return f"kafka-acls.sh $ADMIN --add --allow-principal {principal} {operations} {resource}{pattern}"


def refusal(resource: Resource, name: str, *operations: Operation) -> str:
    """One line for a person: what the brokers did not allow, and how it is allowed."""
    acl = Acl(resource=resource, name=name, operations=operations)
    line = acl.command("User:NAME").replace("$ADMIN", "--bootstrap-server HOST:PORT")
    return f"the brokers do not allow this user {acl}; have the ACL added: {line}"
