"""Static graphs: the step of a model, exported once, run without torch's dispatch."""
