"""wav2vec 2.0 and HuBERT on a stream."""
