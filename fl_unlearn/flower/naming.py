"""What a client is called."""

from __future__ import annotations

from flwr.app import Context


def partition_name(context: Context) -> str:
    """The default name of a client: its partition id, which is stable, or else its node id."""
    return str(context.node_config.get("partition-id", context.node_id))
