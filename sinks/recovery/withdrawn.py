"""What was taken away after a backup stays taken away in a database that comes from it: the audit log knows.

Nothing is given back by it: of keys that were made later, terms and tiers a backup holds what it holds.
"""

from __future__ import annotations

from sqlalchemy import text

from runtime.database import Database

_REVOKED = text(
    "UPDATE api_keys SET is_active = false WHERE is_active AND 'key:' || id::text IN "
    "(SELECT target FROM audit_log WHERE action = 'key.revoke')"
)
_ROTATED = text(
    """
    UPDATE api_keys SET expires_at = ended.at
    FROM (SELECT target, min(at + (details ->> 'grace_s')::float8 * interval '1 second') AS at
          FROM audit_log WHERE action = 'key.rotate' GROUP BY target) AS ended
    WHERE is_active AND 'key:' || id::text = ended.target AND (expires_at IS NULL OR expires_at > ended.at)
    """
)
_SUSPENDED = text(
    """
    UPDATE customers SET is_active = false
    FROM (SELECT DISTINCT ON (target) target, action FROM audit_log
          WHERE action IN ('customer.suspend', 'customer.resume') ORDER BY target, at DESC) AS last
    WHERE is_active AND 'customer:' || id = last.target AND last.action = 'customer.suspend'
    """
)


def withdraw_again(database: Database) -> tuple[int, int]:
    """How many keys were ended, and how many customers suspended, once more."""
    with database.begin() as connection:
        keys = sum(connection.execute(statement).rowcount for statement in (_REVOKED, _ROTATED))
        return keys, connection.execute(_SUSPENDED).rowcount
