"""The compiled backend: live steps on a CPU as programs of few, large instructions (extra `cpu`)."""
