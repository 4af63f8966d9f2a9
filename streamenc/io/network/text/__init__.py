"""Text over a network: plain messages, one segment each, as other programs send them."""
