"""An index of the exchanges that went wrong, which are few among millions."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    incomplete = sa.text("outcome <> 'complete'")
    op.create_index(
        "ix_exchanges_incomplete", "exchanges", ["outcome", "created_at"],
        sqlite_where=incomplete, postgresql_where=incomplete,
    )  # fmt: skip
