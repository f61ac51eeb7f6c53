"""Match rates of the past as columns: the overview reads hundreds of them and none of the JSON beside them."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("match_mean", "match_low", "match_high", "match_tolerated"):
        op.add_column("stream_history", sa.Column(name, sa.Double(), nullable=True))
