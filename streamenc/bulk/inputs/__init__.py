"""What a data set may be: folders, manifests, archives, tables."""
