"""Token streams over an MQTT 5 broker. docs/io/wire.md describes the topics."""
