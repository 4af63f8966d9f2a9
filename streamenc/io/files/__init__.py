"""Files that streamenc reads and writes itself, and those that it only writes."""
