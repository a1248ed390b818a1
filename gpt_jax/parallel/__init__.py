"""Where arrays live: the device mesh, and the one table that shards parameters."""
