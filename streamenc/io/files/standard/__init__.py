"""Standard input and output: what they carry is seen by what comes."""
