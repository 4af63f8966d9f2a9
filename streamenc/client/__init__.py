"""Clients of `streamenc serve`: live streams that resume by themselves."""
