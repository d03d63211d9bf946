"""Who may do what in the lake's bucket: the least that each role needs, declared once, as policies of S3's IAM.

`vlastream s3 policy ROLE BUCKET` prints them; docs/security.md shows the table. The bucket's owner makes the bucket and
runs operators' commands; the other roles use no S3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: First part of every key, one each (sinks/arrow_schemas.py).
DATASETS = ("outcomes", "observations", "feedback", "episodes")
_LIST, _READ, _WRITE, _DELETE = "s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject"


@dataclass(frozen=True, slots=True)
class LakeAccess:
    """The rights of one role on the objects of the datasets, all of which it may list."""

    role: str
    actions: tuple[str, ...]
    #: May write where nothing is, and replace nothing: PutObject only with `If-None-Match`.
    creates_only: bool = False

    def policy(self, bucket: str) -> dict[str, Any]:
        """An identity policy, of the role's own IAM user or role."""
        objects = [f"arn:aws:s3:::{bucket}/{dataset}/*" for dataset in DATASETS]
        freely = [action for action in self.actions if not (self.creates_only and action == _WRITE)]
        statements: list[dict[str, Any]] = [
            {"Sid": "List", "Effect": "Allow", "Action": [_LIST], "Resource": [f"arn:aws:s3:::{bucket}"]},
            {"Sid": "Objects", "Effect": "Allow", "Action": freely, "Resource": objects},
        ]
        if self.creates_only:
            # Null: false wants the header to be there.
            there = {"Null": {"s3:if-none-match": "false"}}
            statements.append(
                {"Sid": "Create", "Effect": "Allow", "Action": [_WRITE], "Resource": objects, "Condition": there}
            )
        return {"Version": "2012-10-17", "Statement": statements}


LAKE_ROLES = (
    LakeAccess("sink-parquet", (_READ, _WRITE), creates_only=True),
    # Compaction, retention and erasures replace and delete.
    LakeAccess("etl", (_READ, _WRITE, _DELETE)),
)


def lake_policy(role: str, bucket: str) -> dict[str, Any]:
    [access] = (access for access in LAKE_ROLES if access.role == role)
    return access.policy(bucket)


def lake_access_table() -> str:
    """The table of docs/security.md, in Markdown."""
    lines = ["| role | on the bucket | on the objects of its datasets |", "|---|---|---|"]
    for access in LAKE_ROLES:
        rights = [
            f"`{action}`, only with `If-None-Match`" if access.creates_only and action == _WRITE else f"`{action}`"
            for action in access.actions
        ]
        lines.append(f"| `{access.role}` | `{_LIST}` | {'; '.join(rights)} |")
    return "\n".join(lines) + "\n"
