"""Where frames meet tensors: nodes that pass frames through a model."""
