"""The compiled backend: live steps on a CPU as programs of large instructions (extra `cpu`)."""
