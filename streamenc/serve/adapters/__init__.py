"""Other ways in than `/v1/stream`: OpenAI's realtime events, and WebRTC."""
