"""What can be asked of models, sources and sinks: promises, options and their meanings."""
