"""Layouts of codes as language models read them, with their inverses."""
