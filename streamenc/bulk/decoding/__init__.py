"""From where an item's bytes are to the frames of its sound or images."""
