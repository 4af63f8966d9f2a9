"""Many live streams on one device, in batched steps."""
