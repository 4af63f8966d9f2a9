"""What the phases of a run on a GPU measure, each a function of a `Phase`."""
