"""Steps on tensors: layers whose state goes in and comes out. No frames, no asyncio."""
