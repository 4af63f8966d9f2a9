"""X-Codec on a stream: an acoustic and a semantic branch, and residual codebooks below both."""
