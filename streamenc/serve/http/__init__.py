"""What is asked of a server over plain HTTP: facts, counts, and a description of it all."""
