"""Files over HTTP, through the models of an engine: POST /v1/encode and /v1/decode."""
