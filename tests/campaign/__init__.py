"""Hostile inputs, soaks and chaos: what `make fuzz`, `make soak` and `make chaos` run.

A *target* takes bytes as a stranger might send them. Whatever they are, it may take them or refuse
them with an error of `streamenc.errors`, within the bounds of `watched`; nothing else. An input
that once broke a promise lies in `corpus/TARGET/` and is tried again by every `make test`.
"""
