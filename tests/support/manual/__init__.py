"""The manual, run: its blocks, and a place where its commands and snippets find what they name."""
