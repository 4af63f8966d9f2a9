"""Token streams over ZeroMQ and MQTT, in one packet format."""
