"""When somebody speaks: detectors of speech, in explicit state, and the nodes around them."""
