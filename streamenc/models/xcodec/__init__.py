"""X-Codec on a stream, and the tokenizer of Higgs audio: an acoustic and a semantic branch."""
