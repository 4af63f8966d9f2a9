"""All that is said about a GPU in one run: proved on it first, then timed."""
