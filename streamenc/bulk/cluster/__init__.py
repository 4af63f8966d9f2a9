"""The same job on a cluster, by Ray Data (the extra `ray`)."""
