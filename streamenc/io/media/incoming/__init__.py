"""What comes before anything is decoded: what its first bytes say, and bytes of a pipe."""
