"""Frames on bounded edges: the graph, its nodes, their times and counts. No torch here."""
