"""Who may do what in Postgres: the least that each role needs, declared once.

`vlastream db roles` makes the users and gives them exactly this, `vlastream db upgrade` keeps it so; docs/security.md
shows it. The owner of the tables (migrations, operators' commands, backups) is no role.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_S, _SI, _SU = ("SELECT",), ("SELECT", "INSERT"), ("SELECT", "UPDATE")
_SIU, _SD, _SUD = ("SELECT", "INSERT", "UPDATE"), ("SELECT", "DELETE"), ("SELECT", "UPDATE", "DELETE")
_ALL = ("SELECT", "INSERT", "UPDATE", "DELETE")

#: Every privilege that may be given on a table. MAINTAIN, to refresh a view, is PostgreSQL 17's.
PRIVILEGES = (*_ALL, "TRUNCATE", "REFERENCES", "TRIGGER", "MAINTAIN")


@dataclass(frozen=True, slots=True)
class DatabaseAccess:
    """The rights of one role. `columns`: table -> the only columns of it that it may read."""

    role: str
    tables: dict[str, tuple[str, ...]]
    columns: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def user(self) -> str:
        return f"vlastream_{self.role.replace('-', '_')}"

    @property
    def url_setting(self) -> str:
        """Name of the setting that tells set-up the DATABASE_URL of this role."""
        return f"{self.role.replace('-', '_')}_database_url".upper()


#: In the order of the flow. The other roles use no Postgres and get no user.
DATABASE_ROLES = (
    DatabaseAccess(
        "api",
        {
            "customers": _SIU,
            # A key is revoked, never deleted.
            "api_keys": _SIU,
            "outbox": ("SELECT", "INSERT", "DELETE"),
            **dict.fromkeys(
                (
                    "inference_log",
                    "safety_incidents",
                    "feedback",
                    "episodes",
                    "context_metadata",
                    "instruction_analytics",
                    "robot_performance_metrics",
                    "consent_audit",
                    "erasures",
                    "usage_daily",
                    "usage_robots",
                    "audit_trail",
                    "daily_usage",
                    "monthly_usage",
                    "safety_trend",
                ),
                _S,
            ),
        },
    ),
    DatabaseAccess(
        "sink-postgres",
        {
            "inference_log": _SIU,
            "safety_incidents": _SI,
            "sink_marks": _SIU,
            "feedback": _SI,
            "episodes": _SIU,
            "context_metadata": _SI,
            "pending_embeddings": ("SELECT", "INSERT", "DELETE"),
            "instruction_analytics": _SIU,
            "customer_data_consent": _SIU,
            "consent_audit": _SI,
            "erasures": _SIU,
            "usage_daily": _SIU,
            "usage_robots": _SI,
            # What was done is added to, and never changed.
            "audit_log": _SI,
        },
    ),
    DatabaseAccess(
        "etl",
        {
            "inference_log": _SUD,
            "safety_incidents": _SUD,
            "context_metadata": _SUD,
            "pending_embeddings": _SD,
            "feedback": _SD,
            "episodes": _SD,
            "instruction_analytics": _ALL,
            "robot_performance_metrics": _ALL,
            "customer_data_consent": _S,
            "erasures": _SU,
            "usage_robots": _SD,
            "etl_runs": _SIU,
            **dict.fromkeys(("daily_usage", "monthly_usage", "safety_trend"), ("SELECT", "MAINTAIN")),
        },
        columns={"customers": ("id",)},
    ),
)


def database_access_table() -> str:
    """The table of docs/security.md, in Markdown."""
    lines = ["| role | user | rights |", "|---|---|---|"]
    for access in DATABASE_ROLES:
        by_rights: dict[tuple[str, ...], list[str]] = {}
        for table, rights in access.tables.items():
            by_rights.setdefault(rights, []).append(f"`{table}`")
        cells = [f"{', '.join(rights)}: {', '.join(tables)}" for rights, tables in by_rights.items()]
        cells += [f"SELECT of {', '.join(names)} alone: `{table}`" for table, names in access.columns.items()]
        lines.append(f"| `{access.role}` | `{access.user}` | {'; '.join(cells)} |")
    return "\n".join(lines) + "\n"
