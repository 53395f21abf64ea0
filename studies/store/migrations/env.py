"""Alembic runs this file, by its path, with what `migrations.upgrade` put into the configuration's attributes."""

from __future__ import annotations

from alembic import context

context.configure(**context.config.attributes)
with context.begin_transaction():
    context.run_migrations()
