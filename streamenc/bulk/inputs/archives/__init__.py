"""Data sets in archives: tars of WebDataset and of Lhotse Shar."""
