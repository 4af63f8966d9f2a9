"""What is asked of a server over plain HTTP: files, facts, counts, and a description of it all."""
